"""COPY in every format, by both protocols, in order and out of it; prints every byte of each answer.

usage: copy.py HOST PORT USER

Run directly and as an agent, the two outputs must be equal.
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


def extended(sql):
    return (
        message(b"P", text(""), text(sql), struct.pack("!h", 0))
        + message(b"B", text(""), text(""), struct.pack("!hhh", 0, 0, 0))
        + message(b"E", text(""), struct.pack("!i", 0))
    )


def data(value):
    return message(b"d", value)


def bytewise(value):
    return b"".join(data(value[i : i + 1]) for i in range(len(value)))


def fail(reason):
    return message(b"f", text(reason))


SYNC, FLUSH, DONE = message(b"S"), message(b"H"), message(b"c")


def binary(*rows):
    out = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    for row in rows:
        out += struct.pack("!h", len(row))
        for value in row:
            out += struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value
    return out + struct.pack("!h", -1)


INT = [struct.pack("!i", n) for n in range(10)]
FORMATS = {
    "text": ("", b"1\tone\\ttab\n2\t\\N\n3\t\\\\.\n"),
    "text with options": ("(DELIMITER '|', NULL 'nil', HEADER)", b"id|note\n1|one\n2|nil\n3|a\\|b\n"),
    "old text": ("WITH DELIMITER ';' NULL ''", b"1;one\n2;\n"),
    "text to its end marker": ("", b"1\tone\n\\.\nnot looked at\n"),
    "text without a last newline": ("", b"1\tone\n2\ttwo"),
    "text with carriage returns": ("", b"1\tone\r\n2\ttwo\r\n"),
    "csv": ("(FORMAT csv)", b'1,"one, ""quoted"""\n2,\n3,""\n4,"two\nlines"\n'),
    "csv with options": (
        "(FORMAT csv, DELIMITER ';', QUOTE '''', ESCAPE '\\', NULL 'nil', HEADER, FORCE_NOT_NULL (note))",
        b"id;note\n1;'one; \\' more'\n2;nil\n",
    ),
    "old csv": ("WITH CSV HEADER QUOTE AS '\"'", b'id,note\n1,"one"\n'),
    "binary": ("(FORMAT binary)", binary((INT[1], b"one"), (INT[2], None), (INT[3], b""))),
    "nothing": ("", b""),
    "no rows in binary": ("(FORMAT binary)", binary()),
    "a bad value": ("", b"1\tone\nx\ttwo\n"),
    "too many values": ("(FORMAT csv)", b"1,one,more\n"),
    "too few values": ("", b"1\n"),
    "an open quote": ("(FORMAT csv)", b'1,"one\n2,two\n'),
    "not binary": ("(FORMAT binary)", b"1\tone\n"),
    "binary cut short": ("(FORMAT binary)", binary((INT[1], b"one"))[:-5]),
    "binary and more": ("(FORMAT binary)", binary((INT[1], b"one")) + b"x"),
    "a double key": ("", b"1\tone\n1\ttwo\n"),
}
OUTPUTS = [
    "COPY made TO STDOUT",
    "COPY made (note, id) TO STDOUT (FORMAT csv, HEADER, FORCE_QUOTE *)",
    "COPY made TO STDOUT (FORMAT csv, DELIMITER ';', NULL 'nil', QUOTE '''')",
    "COPY made TO STDOUT (FORMAT binary)",
    "COPY BINARY made (note) TO STDOUT",
    "COPY (SELECT note, id * 2 FROM made ORDER BY id) TO STDOUT WITH CSV HEADER",
    "COPY (SELECT repeat('x', 300000), n FROM generate_series(1, 5) AS n) TO STDOUT",
    "COPY (SELECT n FROM generate_series(1, 3000) AS n) TO STDOUT (FORMAT binary)",
    "COPY (SELECT 1 / (n - 500) FROM generate_series(1, 1000) AS n) TO STDOUT",
    "COPY (DELETE FROM made WHERE id = 2 RETURNING *) TO STDOUT",
    "COPY no_such_table TO STDOUT",
    "COPY shown TO STDOUT",
    "COPY made TO STDOUT (FORMAT nonsense)",
    "COPY made (id), other TO STDOUT",
]
PLAIN, GOOD, BAD = "COPY made FROM STDIN", b"1\tone\n2\ttwo\n", b"x\tone\n"


def cases():
    """Name, and what is sent or waited for (the type of a message, after its position in the answer)."""
    for name, (options, rows) in FORMATS.items():
        sql = f"COPY made (id, note) FROM STDIN {options}"
        yield f"simple in: {name}", [query(sql), b"G", data(rows) + DONE]
        yield f"simple in, byte by byte: {name}", [query(sql), b"G", bytewise(rows), DONE]
        yield f"extended in: {name}", [extended(sql) + FLUSH, b"G", data(rows) + DONE + SYNC]
        yield f"extended in, as libpq does: {name}", [extended(sql) + SYNC, b"G", bytewise(rows) + DONE + SYNC]
        yield f"extended in, all at once: {name}", [extended(sql) + data(rows) + DONE + SYNC]
    for sql in OUTPUTS:
        fill = "INSERT INTO made VALUES (1, 'a,b'), (2, NULL), (3, E'tab\\there'), (4, ''), (5, E'two\\nlines \"quoted\"'); "
        yield f"simple out: {sql}", [query(fill), query(sql)]
        yield f"extended out: {sql}", [query(fill), extended(sql) + SYNC]
        yield f"extended out, twice: {sql}", [query(fill), extended(sql) + extended(sql) + SYNC]
    yield "several: in, count, out", [
        query(PLAIN + "; SELECT count(*)::text FROM made; COPY made TO STDOUT; SELECT 'end'"),
        b"G",
        data(GOOD) + DONE,
    ]
    yield "several: in and in", [
        query(PLAIN + "; " + PLAIN + " (FORMAT csv); SELECT count(*)::text FROM made"),
        b"G",
        data(GOOD) + DONE,
        b"G",
        data(b"3,three\n") + DONE,
    ]
    yield "several: in and in, all at once", [
        query(PLAIN + "; " + PLAIN + " (FORMAT csv)") + data(GOOD) + DONE + data(b"3,three\n") + DONE
    ]
    yield "several: the first fails", [query(PLAIN + "; DELETE FROM made"), b"G", data(BAD) + DONE]
    yield "several: in and delete", [query(PLAIN + "; DELETE FROM made"), b"G", data(GOOD) + DONE]
    yield "several: out and error", [query("COPY (SELECT 1) TO STDOUT; SELECT 1 / 0; SELECT 2")]
    for name, begin, end in [("simple", query(PLAIN), b""), ("extended", extended(PLAIN) + FLUSH, SYNC)]:
        yield f"{name}: given up", [begin, b"G", data(GOOD) + fail("never mind") + end]
        yield f"{name}: given up at once", [begin, b"G", fail("") + end]
        yield f"{name}: flush amid the data", [begin, b"G", data(GOOD) + FLUSH + data(b"3\tx\n") + DONE + end]
        yield f"{name}: sync amid the data", [begin, b"G", data(GOOD) + SYNC + data(b"3\tx\n") + SYNC + DONE + end]
        yield f"{name}: sync before the end", [begin, b"G", data(GOOD) + SYNC + SYNC + DONE + end]
        yield f"{name}: data after its error", [begin, b"G", data(BAD), b"E", data(GOOD) + data(GOOD) + DONE + end]
        yield f"{name}: an end after its error", [begin, b"G", data(BAD), b"E", fail("too late") + end]
        yield f"{name}: a cut row", [begin, b"G", data(b"1\to"), data(b"ne\n2"), data(b"\ttwo\n"), DONE + end]
    yield "extended: sync after its error", [extended(PLAIN) + FLUSH, b"G", data(BAD), b"E", SYNC, b"Z", data(GOOD) + DONE]
    yield "extended: the sync of a failing copy", [extended("COPY shown FROM STDIN") + SYNC, b"Z"]
    yield "extended: a refused copy and its sync", [extended("COPY nothing FROM STDIN") + SYNC, b"Z", data(GOOD) + DONE]
    yield "extended: a refused copy and its data", [extended("COPY nothing FROM STDIN") + data(GOOD) + DONE + SYNC]
    yield "pipeline: before and after a copy", [
        extended("SELECT 1") + extended(PLAIN) + data(GOOD) + DONE + extended("SELECT 2") + SYNC
    ]
    yield "pipeline: what follows a failed copy", [
        extended(PLAIN) + data(BAD) + DONE + extended("SELECT 1") + SYNC + extended("SELECT 2") + SYNC
    ]
    yield "pipeline: two copies", [extended(PLAIN) + data(GOOD) + DONE + extended(PLAIN) + data(b"3\tx\n") + DONE + SYNC]
    yield "pipeline: copies in segments", [
        extended(PLAIN) + data(GOOD) + DONE + SYNC + extended("COPY made TO STDOUT") + SYNC
    ]
    yield "in a transaction", [
        query("BEGIN"),
        b"Z",
        query(PLAIN),
        b"G",
        data(BAD) + DONE,
        b"Z",
        query(PLAIN),
        b"Z",
        query("ROLLBACK"),
    ]
    yield "nobody's data", [data(GOOD) + DONE + query("SELECT 1")]
    yield "nobody's end and sync", [DONE + SYNC + fail("x") + SYNC]
    yield "a portal of a copy", [
        query("BEGIN"),
        message(b"P", text("c"), text("COPY (SELECT 1) TO STDOUT"), struct.pack("!h", 0))
        + message(b"B", text("p"), text("c"), struct.pack("!hhh", 0, 0, 0))
        + message(b"D", b"P", text("p"))
        + message(b"E", text("p"), struct.pack("!i", 1))
        + message(b"E", text("p"), struct.pack("!i", 0))
        + message(b"C", b"S", text("c"))
        + SYNC,
        query("ROLLBACK"),
    ]
    # These end the session.
    for name, begin in [("simple", query(PLAIN)), ("extended", extended(PLAIN) + FLUSH)]:
        yield f"{name}: a query amid the data", [begin, b"G", data(GOOD) + query("DELETE FROM made")]
        yield f"{name}: a parse amid the data", [begin, b"G", data(GOOD) + extended("SELECT 1") + SYNC]
        yield f"{name}: sync and a query amid the data", [begin, b"G", SYNC + query("SELECT 1")]


class Closed(Exception):
    pass


class Connection:
    def __init__(self):
        host, port, user = sys.argv[1:]
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.buffer = b""
        parameters = text("user") + text(user) + text("database") + text("shop") + b"\0"
        startup = struct.pack("!i", 196608) + parameters
        self.send(struct.pack("!i", len(startup) + 4) + startup)
        while self.message()[:1] != b"Z":
            pass
        # Temporary: neither the other run nor its names are in the way.
        self.send(
            query(
                "CREATE TEMP TABLE made (id integer PRIMARY KEY, note text); CREATE TEMP VIEW shown AS TABLE made; "
                "SET client_min_messages = warning"
            )
        )
        while self.message()[:1] != b"Z":
            pass

    def send(self, sent):
        try:
            self.socket.sendall(sent)
        except OSError:
            raise Closed from None

    def message(self):
        """One message of the server, as it came."""
        while True:
            if len(self.buffer) >= 5:
                length = 1 + struct.unpack("!i", self.buffer[1:5])[0]
                if len(self.buffer) >= length:
                    whole, self.buffer = self.buffer[:length], self.buffer[length:]
                    return whole
            try:
                more = self.socket.recv(65536)
            except ConnectionError:
                more = b""
            if not more:
                raise Closed
            self.buffer += more


def run(connection, name, steps):
    def heard():
        part = connection.message()
        shown = part.hex() if len(part) < 200 else f"{part[:50].hex()}… {len(part)} {hash_of(part)}"
        print(name, part[:1].decode(), shown)
        return part

    for step in steps:
        if len(step) == 1:
            while heard()[:1] != step:
                pass
        else:
            connection.send(step)
    # Whatever came before, this is answered.
    connection.send(query("SELECT 'in step', string_agg(made::text, ' ' ORDER BY id) FROM made; DELETE FROM made"))
    while b"in step" not in heard():
        pass
    while heard()[:1] != b"Z":
        pass


def hash_of(part):
    import hashlib

    return hashlib.sha256(part).hexdigest()


def main():
    connection = Connection()
    count = 0
    for name, steps in cases():
        count += 1
        try:
            run(connection, name, steps)
        except Closed:
            print(name, "closed")
            connection = Connection()
    print(count, "cases")


main()
