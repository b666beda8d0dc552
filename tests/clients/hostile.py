"""Sends malformed bytes, one connection per case, and prints: local port, what happened, the case.

usage: hostile.py HOST PORT

"closed" is the only good outcome: the other side must end the session by itself, or after we have sent
our last byte and closed our half.
"""

import random
import socket
import struct
import sys

HOST, PORT = sys.argv[1], int(sys.argv[2])
PATIENCE = 20


def packet(length, body):
    return struct.pack("!i", length) + body


def startup(parameters=b"user\0x\0database\0shop\0\0", code=196608):
    return packet(len(parameters) + 8, struct.pack("!i", code) + parameters)


def message(kind, body=b"", length=None):
    return kind + packet(len(body) + 4 if length is None else length, body)


SSL_REQUEST = packet(8, struct.pack("!i", 80877103))
GSS_REQUEST = packet(8, struct.pack("!i", 80877104))
BIGGEST = 2**31 - 1
noise = random.Random(2)

BEFORE_STARTUP = {
    "startup: length 0": packet(0, b""),
    "startup: length 3": packet(3, b""),
    "startup: length 4": packet(4, b""),
    "startup: length 7": packet(7, b"\0\3\0"),
    "startup: length 2^31-1": packet(BIGGEST, struct.pack("!i", 196608)),
    "startup: length -1": packet(-1, b"x" * 100),
    "startup: length 10001": packet(10001, struct.pack("!i", 196608) + b"x" * 9993),
    "startup: truncated length": b"\0\0",
    "startup: truncated body": startup()[:-5],
    "startup: no parameters": startup(b"\0"),
    "startup: nothing after the code": startup(b""),
    "startup: not terminated": startup(b"user\0x\0database\0shop"),
    "startup: a name without a value": startup(b"user\0x\0database\0"),
    "startup: no user": startup(b"database\0shop\0\0"),
    "startup: bytes after the end": startup(b"user\0x\0\0trailing"),
    "startup: not UTF-8": startup(b"user\0\xff\xfe\0database\0shop\0\0"),
    "startup: version 2": startup(code=131072),
    "startup: version 4": startup(code=262144),
    "startup: unknown code": startup(code=0x12345678),
    "startup: replication": startup(b"user\0x\0database\0shop\0replication\0true\0\0"),
    "startup: SSL twice": SSL_REQUEST + SSL_REQUEST,
    "startup: SSL with bytes behind": SSL_REQUEST + startup(),
    "startup: GSS twice": GSS_REQUEST + GSS_REQUEST,
    "startup: a long SSL request": packet(12, struct.pack("!ii", 80877103, 0)),
    "startup: a short cancel": packet(12, struct.pack("!ii", 80877102, 1)),
    "startup: a cancel of nobody": packet(16, struct.pack("!iii", 80877102, 1, 1)),
    "startup: direct TLS": bytes.fromhex("16030100c8010000c4"),
    "startup: HTTP": b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n",
    "startup: random": noise.randbytes(1000),
    "startup: only zeros": bytes(4096),
    "startup: only 0xff": b"\xff" * 4096,
}

IN_SESSION = {
    "session: length 0": message(b"Q", length=0),
    "session: length 3": message(b"Q", length=3),
    "session: length 2^31-1": message(b"Q", b"SELECT 1", BIGGEST),
    "session: length -1": message(b"Q", b"SELECT 1\0", -1),
    "session: truncated header": b"Q\0",
    "session: truncated body": message(b"Q", b"SELECT 1\0", 100),
    "session: unknown type": message(b"\x01", b"x"),
    "session: a server's message": message(b"T", b"\0\0"),
    "session: query without an end": message(b"Q", b"SELECT 1"),
    "session: query with two ends": message(b"Q", b"SELECT 1\0; DROP TABLE orders\0"),
    "session: empty query message": message(b"Q", b""),
    "session: parse without an end": message(b"P", b"name"),
    "session: parse with missing types": message(b"P", b"\0SELECT 1\0\x7f\xff"),
    "session: parse with negative types": message(b"P", b"\0SELECT 1\0\xff\xff"),
    "session: bind of too many formats": message(b"B", b"\0\0\x7f\xff"),
    "session: bind of too many values": message(b"B", b"\0\0\0\0\x7f\xff"),
    "session: bind of a value too long": message(b"B", b"\0\0\0\0\0\1\x7f\xff\xff\xff"),
    "session: bind of a negative length": message(b"B", b"\0\0\0\0\0\1\xff\xff\xff\x00\0\0"),
    "session: describe of nothing": message(b"D", b""),
    "session: describe of an unknown kind": message(b"D", b"X\0"),
    "session: close of an unknown kind": message(b"C", b"X\0"),
    "session: execute without a limit": message(b"E", b"\0"),
    "session: sync with a body": message(b"S", b"x"),
    "session: random": noise.randbytes(1000),
    "session: startup again": startup(),
    "session: query not UTF-8, then gone": message(b"Q", b"SELECT '\xff\xfe'\0"),
    "session: left without goodbye": message(b"Q", b"SELECT 1\0"),
    "session: left in the middle of a row": message(b"Q", b"SELECT repeat('x', 1000) FROM generate_series(1, 100000)\0"),
}


def wait_until_ready(stream):
    data = b""
    while b"Z\0\0\0\5I" not in data:
        more = stream.recv(65536)
        if not more:
            raise OSError("no greeting")
        data += more


def closed(stream):
    """Whether the other side ends the connection."""
    try:
        while stream.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def run(name, data, in_session):
    with socket.create_connection((HOST, PORT), timeout=PATIENCE) as stream:
        local = stream.getsockname()[1]
        verdict = "closed"
        try:
            if in_session:
                stream.sendall(startup())
                wait_until_ready(stream)
            if name.endswith("in the middle of a row"):
                stream.sendall(data)
                stream.recv(10)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)
                closed(stream)
        except TimeoutError:
            verdict = "open"
        except ConnectionError:
            pass
    print(local, verdict, name, flush=True)


for name, data in BEFORE_STARTUP.items():
    run(name, data, in_session=False)
for name, data in IN_SESSION.items():
    run(name, data, in_session=True)
