"""PostgreSQL's protocol by hand, for scripts that try what no driver does."""

import socket
import struct
import sys


def message(kind, *parts):
    body = b"".join(parts)
    return kind + struct.pack("!i", len(body) + 4) + body


def text(value):
    return value.encode() + b"\0"


def query(sql):
    return message(b"Q", text(sql))


def parse(sql, name=""):
    return message(b"P", text(name), text(sql), struct.pack("!h", 0))


def bind(portal="", statement="", formats=(), values=(), value_formats=()):
    """Values are bytes, or None for NULL."""
    packed = b"".join(
        struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value for value in values
    )
    return message(
        b"B",
        text(portal),
        text(statement),
        struct.pack(f"!h{len(value_formats)}h", len(value_formats), *value_formats),
        struct.pack("!h", len(values)) + packed,
        struct.pack(f"!h{len(formats)}h", len(formats), *formats),
    )


def describe(kind, name=""):
    return message(b"D", kind, text(name))


def execute(portal="", rows=0):
    return message(b"E", text(portal), struct.pack("!i", rows))


def close(kind, name=""):
    return message(b"C", kind, text(name))


def run(sql):
    """All that a driver sends for one statement, but for the Sync."""
    return parse(sql) + bind() + describe(b"P") + execute()


def call(function, *values):
    """A function call outside of SQL, its arguments and its value in text."""
    packed = b"".join(struct.pack("!i", len(value)) + value for value in values)
    return message(b"F", struct.pack("!Ihh", function, 0, len(values)) + packed + struct.pack("!h", 0))


def data(rows):
    return message(b"d", rows)


SYNC, FLUSH, DONE = message(b"S"), message(b"H"), message(b"c")


def startup(**parameters):
    body = struct.pack("!i", 196608) + b"".join(text(name) + text(value) for name, value in parameters.items()) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


class Connection:
    """To the server that the program's first two arguments name."""

    def __init__(self, **parameters):
        self.socket = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
        # All that was received, and of the errors of missing privileges what they said.
        self.received, self.buffer, self.messages = b"", b"", []
        self.send(startup(user="shop_clerk", database="shop", **parameters))
        self.greeting = self.until(b"Z")

    def close(self):
        self.socket.close()

    def send(self, *parts):
        self.socket.sendall(b"".join(parts))

    def message(self):
        while True:
            if len(self.buffer) >= 5:
                length = 1 + struct.unpack("!i", self.buffer[1:5])[0]
                if len(self.buffer) >= length:
                    whole, self.buffer = self.buffer[:length], self.buffer[length:]
                    return whole[:1], whole[5:]
            received = self.socket.recv(65536)
            if not received:
                return b"", b""
            self.received += received
            self.buffer += received

    def until(self, last, count=1):
        """What comes up to the `count`th message of that type, a word for each."""
        words = []
        while count:
            kind, body = self.message()
            words.append(self.word(kind, body))
            if not kind:
                break
            count -= kind == last
        return " ".join(words)

    def word(self, kind, body):
        if kind == b"E":
            fields = {part[:1]: part[1:].decode() for part in body.split(b"\0") if part}
            if fields[b"C"] == "42501":
                self.messages.append(fields[b"M"])
            return f"E:{fields[b'V']}/{fields[b'C']}"
        if kind == b"C":
            return f"C:{body[:-1].decode()}"
        return {b"Z": f"Z:{body.decode()}" if kind == b"Z" else "", b"": "closed"}.get(kind, kind.decode())

    def ask(self, *parts, syncs=1):
        self.send(*parts)
        return self.until(b"Z", syncs)
