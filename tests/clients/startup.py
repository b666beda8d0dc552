"""Connects once per parameter and prints what comes of it.

usage: startup.py HOST PORT NAME=VALUE...
"""

import socket
import struct
import sys


def text(value):
    return value.encode() + b"\0"


def exactly(connection, count):
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise SystemExit("closed")
        data += more
    return data


def outcome(name, value):
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
    parameters = [("user", "postgres"), ("database", "shop"), (name, value)]
    body = struct.pack("!i", 196608) + b"".join(text(part) for pair in parameters for part in pair) + b"\0"
    connection.sendall(struct.pack("!i", len(body) + 4) + body)
    while True:
        kind = exactly(connection, 1)
        body = exactly(connection, struct.unpack("!i", exactly(connection, 4))[0] - 4)
        if kind == b"E":
            fields = {part[:1]: part[1:].decode() for part in body.split(b"\0") if part}
            return f"{fields[b'S']} {fields[b'C']} {fields[b'M']}"
        if kind == b"Z":
            return "ready"


for parameter in sys.argv[3:]:
    print(f"{parameter}: {outcome(*parameter.split('=', 1))}", flush=True)
