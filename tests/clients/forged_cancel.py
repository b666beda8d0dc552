"""Tries to cancel its own session with keys that are not its own. usage: forged_cancel.py HOST PORT"""

import socket
import struct
import sys

HOST, PORT = sys.argv[1], int(sys.argv[2])


def message(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


def read(stream):
    kind, length = struct.unpack("!ci", exactly(stream, 5))
    return kind, exactly(stream, length - 4)


def exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise SystemExit("the connection was closed")
        data += more
    return data


def cancel(process, secret):
    with socket.create_connection((HOST, PORT), timeout=10) as stream:
        stream.sendall(struct.pack("!iiII", 16, 80877102, process, secret))
        while stream.recv(64):
            pass


with socket.create_connection((HOST, PORT), timeout=20) as session:
    startup = struct.pack("!i", 196608) + b"user\0x\0database\0shop\0\0"
    session.sendall(struct.pack("!i", len(startup) + 4) + startup)
    process = secret = None
    while True:
        kind, body = read(session)
        if kind == b"K":
            process, secret = struct.unpack("!II", body[:8])
        if kind == b"Z":
            break
    session.sendall(message(b"Q", b"SELECT pg_sleep(3)\0"))
    for forged in ((process, secret ^ 1), (process, 0), (process + 1, secret), (0, 0)):
        try:
            cancel(*forged)
        except ConnectionResetError:
            pass
    while True:
        kind, body = read(session)
        if kind == b"E":
            print("cancelled", body)
        if kind == b"C":
            print("not cancelled")
        if kind == b"Z":
            break
    session.sendall(message(b"Q", b"SELECT pg_backend_pid()\0"))
    while True:
        kind, body = read(session)
        if kind == b"D" and int(body[6:]) == process:
            print("the backend's own process id")
        if kind == b"Z":
            break
