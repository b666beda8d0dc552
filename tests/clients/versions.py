"""How a server answers each protocol version, byte by byte. usage: versions.py HOST PORT

Prints the kinds of the messages until ReadyForQuery, what NegotiateProtocolVersion says, how long the cancel key is,
and whether a cancel with that key reaches the session.
"""

import socket
import struct
import sys
import time


def dial():
    return socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)


def startup(version, *more):
    parameters = b"".join(part + b"\0" for part in (b"user", b"postgres", b"database", b"postgres", *more)) + b"\0"
    return struct.pack("!II", len(parameters) + 8, version) + parameters


class Session:
    def __init__(self, version, *more):
        self.connection = dial()
        self.connection.sendall(startup(version, *more))
        self.buffer = b""
        self.key = None

    def read(self, size):
        while len(self.buffer) < size:
            block = self.connection.recv(65536)
            if not block:
                raise EOFError
            self.buffer += block
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def message(self):
        kind = self.read(1)
        length = struct.unpack("!I", self.read(4))[0]
        if length > 1 << 24:
            raise EOFError("a message of protocol 2 has no length")
        return kind, self.read(length - 4)

    def until_ready(self):
        """What came, each run of one kind once; the parameters are another test's."""
        seen = []
        try:
            while True:
                kind, body = self.message()
                if kind == b"K":
                    self.key = body
                    seen.append(f"K {len(body)}")
                elif kind == b"v":
                    newest, count = struct.unpack("!II", body[:8])
                    names = [name.decode() for name in body[8:].split(b"\0")[:count]]
                    seen.append(f"v {newest >> 16}.{newest & 0xffff} {names}")
                elif kind == b"E":
                    fields = {field[:1]: field[1:].decode() for field in body.split(b"\0") if field}
                    seen.append(f"E {fields[b'S']} {fields[b'C']}")
                elif kind == b"Z":
                    return [*seen, f"Z {body.decode()}"]
                elif not seen or seen[-1] != kind.decode():
                    seen.append(kind.decode())
        except EOFError as error:
            return [*seen, str(error) or "closed"]

    def query(self, text):
        body = text.encode() + b"\0"
        self.connection.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)


def cancelled(version):
    session = Session(version)
    session.until_ready()
    session.query("SELECT pg_sleep(90)")
    # Longer than a cancel needs, shorter than the statement: what comes back says which of them ended it.
    time.sleep(1)
    with dial() as other:
        other.sendall(struct.pack("!II", len(session.key) + 8, 80877102) + session.key)
        silent = other.recv(1) == b""
    return silent, session.until_ready()


def forged(version):
    session = Session(version)
    session.until_ready()
    key = session.key[:4] + bytes(byte ^ 1 for byte in session.key[4:])
    session.query("SELECT pg_sleep(2)")
    time.sleep(0.5)
    with dial() as other:
        other.sendall(struct.pack("!II", len(key) + 8, 80877102) + key)
        other.recv(1)
    return session.until_ready()


def case(name, function):
    print(f"ok {name}: {function()}", flush=True)


for minor in (0, 1, 2, 3, 9999):
    case(f"3.{minor}", lambda minor=minor: Session(0x30000 + minor).until_ready())
case("4.0", lambda: Session(0x40000).until_ready())
case("2.0", lambda: Session(0x20000).until_ready())
for minor in (0, 2):
    case(f"3.{minor} with an unknown option", lambda minor=minor: Session(0x30000 + minor, b"_pq_.sluice", b"1").until_ready())
for minor in (0, 2):
    case(f"3.{minor} cancelled", lambda minor=minor: cancelled(0x30000 + minor))
    case(f"3.{minor} with a forged key", lambda minor=minor: forged(0x30000 + minor))
