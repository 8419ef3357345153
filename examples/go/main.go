// Buys one unit: go run . 127.0.0.1:50051 sneaker-42 ann order-1
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "example/yoink/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 5 {
		log.Fatal("usage: buy <address> <product id> <user id> <request id>")
	}
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := pb.NewInventoryServiceClient(connection)
	answer := buy(client, &pb.ReserveUnitRequest{ProductId: os.Args[2], UserId: os.Args[3], RequestId: os.Args[4]})
	id := answer.Reservation.ReservationId
	fmt.Printf("bought: %s duplicate=%t\n", id, answer.Duplicate)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	found, err := client.GetReservation(ctx, &pb.GetReservationRequest{ReservationId: id})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("state:", found.Reservation.State)
}

func buy(client pb.InventoryServiceClient, wanted *pb.ReserveUnitRequest) *pb.ReserveUnitResponse {
	for range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		answer, err := client.ReserveUnit(ctx, wanted)
		cancel()
		if err == nil {
			return answer
		}
		if reason, unclear := assess(err); !unclear {
			log.Fatal("refused: ", reason)
		}
		// The unit may have been taken. The same request id never takes a second one, so the call can be repeated.
		fmt.Println("unclear:", status.Convert(err).Message())
		time.Sleep(500 * time.Millisecond)
	}
	log.Fatal("no answer: ask again later with the same request id")
	return nil
}

// The reason of an error, such as SOLD_OUT, and whether the unit may have been taken. An error without ErrorInfo does not
// come from the service.
func assess(err error) (reason string, unclear bool) {
	code := status.Code(err)
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			open := code == codes.Unavailable || code == codes.DeadlineExceeded
			return info.Reason, open || info.Metadata["applied"] == "maybe"
		}
	}
	return "", true
}
