"""Answers DNS on 127.0.0.1 with the addresses given (name=address,address …) while a command runs. It needs a network of its own."""

import fcntl
import socket
import struct
import subprocess
import sys
import threading

SIOCSIFFLAGS = 0x8914
IFF_UP = 1

names = dict(word.split("=") for word in sys.argv[1].split())
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# A new network's loopback is down.
fcntl.ioctl(udp, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
udp.bind(("127.0.0.1", 53))


def answer(query):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12 : at + 5]
    addresses = names[labels[0]].split(",") if question[-3] == 1 and labels[0] in names else []
    header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4)
    return header + question + b"".join(record + socket.inet_aton(address) for address in addresses)


def serve():
    while True:
        query, client = udp.recvfrom(4096)
        udp.sendto(answer(query), client)


threading.Thread(target=serve, daemon=True).start()
sys.exit(subprocess.run(sys.argv[2:]).returncode)
