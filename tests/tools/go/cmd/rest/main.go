// Uses the client that oapi-codegen makes of docs/openapi.yaml: what it returns is typed.
package main

import (
	"context"
	"log"
	"os"

	"clients/rest"
)

func check(holds bool, what string) {
	if !holds {
		log.Fatal("not so: ", what)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	ctx := context.Background()
	client := must(rest.NewClientWithResponses(os.Args[1]))

	products := must(client.StorefrontServiceListStorefrontWithResponse(ctx))
	check(len(*products.JSON200) == 1, "one product is listed")
	var listed rest.ListStorefrontResponse = (*products.JSON200)[0]
	check(listed.Id == "shoe" && listed.Price == 19.99 && *listed.Stock == 5, "the product is an object with its fields")

	request, stored := "request-1", rest.ReserveUnitRequestAck("ACK_LEDGER")
	ann, bob, invalid := "ann", "bob", "a b"
	order := rest.ReserveUnitRequest{ProductId: "shoe", UserId: &ann, RequestId: &request, Ack: &stored}
	reserve := func(order rest.ReserveUnitRequest) *rest.InventoryServiceReserveUnitResponse {
		return must(client.InventoryServiceReserveUnitWithResponse(ctx, nil, order))
	}
	first := reserve(order)
	check(first.StatusCode() == 201 && first.JSON201.Reservation.State == "RESERVATION_STATE_CONFIRMED", "201: stored")
	again := reserve(order)
	check(again.StatusCode() == 200 && again.JSON200.Duplicate, "200: a duplicate")
	check(again.JSON200.Reservation.ReservationId == first.JSON201.Reservation.ReservationId, "the same reservation")
	accepted := reserve(rest.ReserveUnitRequest{ProductId: "shoe", UserId: &bob})
	check(accepted.StatusCode() == 202 && accepted.JSON202.Remaining == "3", "202: accepted")

	unknown := reserve(rest.ReserveUnitRequest{ProductId: "nothing", UserId: &ann})
	check(unknown.JSON404.Code == 5 && *unknown.JSON404.Details[0].Reason == "PRODUCT_NOT_FOUND", "404 with its reason")
	wrong := reserve(rest.ReserveUnitRequest{ProductId: "shoe", UserId: &invalid})
	var field string
	for _, detail := range wrong.JSON400.Details {
		if detail.FieldViolations != nil {
			field = (*detail.FieldViolations)[0].Field
		}
	}
	check(field == "user_id", "400 with its field")
}
