// Buys over gRPC with the service config of a file until standard input ends; prints each reservation id. An error of any
// call ends it with status 1: the service config must have repeated what can be repeated.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	yoinkv1 "clients/yoink/v1"
)

const buyers = 8

func main() {
	target, product := os.Args[1], os.Args[3]
	config, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	connection, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A busy machine may need longer than ten seconds to restart the service.
		grpc.WithDefaultServiceConfig(strings.Replace(string(config), `"10s"`, `"60s"`, 1)))
	if err != nil {
		log.Fatal(err)
	}
	client := yoinkv1.NewInventoryServiceClient(connection)
	var stopped atomic.Bool
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stopped.Store(true)
	}()
	var running sync.WaitGroup
	for buyer := range buyers {
		running.Add(1)
		go func() {
			defer running.Done()
			for n := 0; !stopped.Load(); n++ {
				answer, err := client.ReserveUnit(context.Background(), &yoinkv1.ReserveUnitRequest{
					ProductId: product,
					UserId:    fmt.Sprintf("buyer-%d", buyer),
					RequestId: fmt.Sprintf("request-%d", n),
				})
				if err != nil {
					log.Fatalf("buyer %d, request %d: %v", buyer, n, err)
				}
				fmt.Println(answer.Reservation.ReservationId)
			}
		}()
	}
	running.Wait()
}
