"""Speaks PostgreSQL's protocol by hand and prints every byte of each answer.

usage: wire.py HOST PORT

Run directly and as an agent, the two outputs must be equal: what no rule touches is passed on unchanged.
"""

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


def parse(name, sql, *types):
    oids = b"".join(struct.pack("!I", oid) for oid in types)
    return message(b"P", text(name), text(sql), struct.pack("!h", len(types)), oids)


def bind(portal, statement, values=(), result_formats=()):
    packed = b"".join(
        struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value for value in values
    )
    formats = b"".join(struct.pack("!h", code) for code in result_formats)
    return message(
        b"B",
        text(portal),
        text(statement),
        struct.pack("!h", 0),
        struct.pack("!h", len(values)),
        packed,
        struct.pack("!h", len(result_formats)),
        formats,
    )


def describe(kind, name):
    return message(b"D", kind, text(name))


def execute(portal, rows=0):
    return message(b"E", text(portal), struct.pack("!i", rows))


def close(kind, name):
    return message(b"C", kind, text(name))


SYNC = message(b"S")
FLUSH = message(b"H")
PRODUCTS = "SELECT id, title, price, stock FROM products ORDER BY id"

STEPS = {
    "simple: rows": query(PRODUCTS),
    "simple: several statements": query("SELECT 1 AS one; SELECT title FROM products WHERE id = 2; SELECT 3"),
    "simple: nothing": query(""),
    "simple: only a comment": query("-- nothing to see"),
    "simple: no rows": query("SELECT * FROM orders WHERE id < 0"),
    "simple: null and empty": query("SELECT NULL::text, '', 'ä€😀'"),
    "simple: a large row": query("SELECT repeat('x', 300000)"),
    "simple: many rows": query("SELECT n, n * n FROM generate_series(1, 5000) AS n"),
    "simple: an error while running": query("SELECT 1 / (stock - stock) FROM products"),
    "simple: an error of the server's own": query("SELECT no_such_column FROM products"),
    "simple: a transaction": query("BEGIN; SELECT 1; COMMIT"),
    "transaction: begin": query("BEGIN"),
    "transaction: fails": query("SELECT 1 / 0"),
    "transaction: is aborted": query("SELECT 1"),
    "transaction: ends": query("ROLLBACK"),
    "extended: unnamed": parse("", PRODUCTS)
    + bind("", "")
    + describe(b"P", "")
    + execute("")
    + SYNC,
    "extended: parameters": parse("", "SELECT title FROM products WHERE id = $1 AND stock > $2", 23)
    + describe(b"S", "")
    + bind("", "", (b"3", b"0"))
    + execute("")
    + SYNC,
    "extended: binary results": parse("", PRODUCTS) + bind("", "", (), (1,)) + execute("") + SYNC,
    "extended: a format per column": parse("", PRODUCTS)
    + bind("", "", (), (1, 0, 0, 1))
    + execute("")
    + SYNC,
    "extended: a null parameter": parse("", "SELECT $1::int IS NULL") + bind("", "", (None,)) + execute("") + SYNC,
    "extended: nothing": parse("", "") + bind("", "") + describe(b"P", "") + execute("") + SYNC,
    "prepared: made": parse("by_id", "SELECT title FROM products WHERE id = $1", 23) + SYNC,
    "prepared: used": bind("", "by_id", (b"1",)) + execute("") + SYNC,
    "prepared: used twice in a pipeline": bind("", "by_id", (b"2",))
    + execute("")
    + bind("", "by_id", (b"4",))
    + execute("")
    + SYNC,
    "prepared: closed": close(b"S", "by_id") + SYNC,
    "portal: some rows at a time": parse("", "SELECT n FROM generate_series(1, 5) AS n")
    + bind("p", "")
    + execute("p", 2)
    + execute("p", 2)
    + execute("p", 2)
    + close(b"P", "p")
    + SYNC,
    "pipeline: several syncs": parse("", "SELECT 1")
    + bind("", "")
    + execute("")
    + SYNC
    + parse("", "SELECT 2")
    + bind("", "")
    + execute("")
    + SYNC,
    "pipeline: an error skips to the sync": parse("", "SELECT 1 / 0")
    + bind("", "")
    + execute("")
    + parse("", "SELECT 'skipped'")
    + bind("", "")
    + execute("")
    + SYNC
    + parse("", "SELECT 'runs'")
    + bind("", "")
    + execute("")
    + SYNC,
    "pipeline: flush": parse("", "SELECT 7") + bind("", "") + execute("") + FLUSH + SYNC,
    # What asyncpg does; 1 / 0 fails when it is planned, which is at Bind.
    "asked first: prepared": parse("asked", "SELECT 1 / 0") + describe(b"S", "asked") + FLUSH,
    "asked first: fails at bind": bind("", "asked", (), (1,)) + execute("") + SYNC,
    "asked first: the portal fails later": parse("", "SELECT 1 / (n - 3) FROM generate_series(1, 5) AS n")
    + bind("", "", (), (1,))
    + execute("")
    + SYNC,
    "an unknown statement": bind("", "never_made") + execute("") + SYNC,
}


class Connection:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=30)
        self.buffer = b""

    def send(self, data):
        self.socket.sendall(data)

    def message(self):
        """One message of the server, as it came."""
        while True:
            if len(self.buffer) >= 5:
                length = 1 + struct.unpack("!i", self.buffer[1:5])[0]
                if len(self.buffer) >= length:
                    whole, self.buffer = self.buffer[:length], self.buffer[length:]
                    return whole
            data = self.socket.recv(65536)
            if not data:
                raise SystemExit("the connection was closed")
            self.buffer += data

    def answer(self, count=1, last=b"Z"):
        messages = []
        while count:
            messages.append(self.message())
            count -= messages[-1][:1] == last
        return messages


def main():
    connection = Connection(sys.argv[1], int(sys.argv[2]))
    parameters = text("user") + text("shop_app") + text("database") + text("shop") + b"\0"
    startup = struct.pack("!i", 196608) + parameters
    connection.send(struct.pack("!i", len(startup) + 4) + startup)
    for greeting in connection.answer():
        # The cancel key is each connection's own.
        if greeting[:1] != b"K":
            print("greeting", greeting.hex())
    for name, step in STEPS.items():
        connection.send(step)
        # A Flush alone is answered up to the columns that were asked for, and without ReadyForQuery.
        last = b"T" if step.endswith(FLUSH) else b"Z"
        for part in connection.answer(max(1, step.count(SYNC)), last):
            print(name, part.hex())
    connection.send(message(b"X"))


main()
