"""Buys one unit: python buy.py 127.0.0.1:50051 sneaker-42 ann order-1"""

import sys
import time

import grpc
from google.rpc import error_details_pb2, status_pb2
from yoink.v1 import inventory_pb2 as pb
from yoink.v1 import inventory_pb2_grpc, types_pb2

UNCLEAR = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def error_info(error):
    """The ErrorInfo of an error; None, if the error does not come from the service."""
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b""))
    info = error_details_pb2.ErrorInfo()
    return next((info for detail in status.details if detail.Unpack(info)), None)


def buy(client, wanted):
    for _ in range(20):
        try:
            return client.ReserveUnit(wanted, timeout=2)
        except grpc.RpcError as error:
            info = error_info(error)
            if info and info.metadata.get("applied") != "maybe" and error.code() not in UNCLEAR:
                sys.exit(f"refused: {info.reason}")
            # The unit may have been taken. The same request id never takes a second one, so the call can be repeated.
            print("unclear:", error.details())
            time.sleep(0.5)
    sys.exit("no answer: ask again later with the same request id")


def main():
    if len(sys.argv) != 5:
        sys.exit("usage: buy.py <address> <product id> <user id> <request id>")
    address, product_id, user_id, request_id = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        client = inventory_pb2_grpc.InventoryServiceStub(channel)
        wanted = pb.ReserveUnitRequest(product_id=product_id, user_id=user_id, request_id=request_id)
        answer = buy(client, wanted)
        print(f"bought: {answer.reservation.reservation_id} duplicate={str(answer.duplicate).lower()}")
        request = pb.GetReservationRequest(reservation_id=answer.reservation.reservation_id)
        reservation = client.GetReservation(request, timeout=2).reservation
        print("state:", types_pb2.ReservationState.Name(reservation.state))


main()
