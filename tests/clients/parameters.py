"""Parameters of many types, in binary and in text. usage: parameters.py HOST PORT

Prints, for each statement with a parameter: its type, and the value as the server prints it.
"""

import socket
import struct
import sys

VALUES = [
    ("bool", "true"),
    ("int2", "-2"),
    ("int4", "42"),
    ("int8", "9007199254740993"),
    ("oid", "4294967295"),
    ("float4", "0.1"),
    ("float8", "1e-05"),
    ("numeric", "-12345.678900"),
    ("money", "-1975313.98"),
    ("text", "ä€ and 'quotes'"),
    ("varchar", "varchar"),
    ("bpchar", "padded  "),
    ("name", "a name"),
    ("char", "x"),
    ("bytea", "\\x00ff10"),
    ("json", '{"a": [1, null]}'),
    ("jsonb", '{"a": [1, null]}'),
    ("uuid", "c2f0e1a4-0000-4000-8000-000000000001"),
    ("date", "0044-03-15 BC"),
    ("time", "13:14:15.5"),
    ("timetz", "13:14:15+05:30"),
    ("timestamp", "2024-02-29 13:14:15.123456"),
    ("timestamptz", "2024-02-29 13:14:15+02"),
    ("interval", "-1 year 2 mons -3 days 04:05:06.7"),
    ("inet", "192.0.2.7/24"),
    ("cidr", "2001:db8::/32"),
    ("macaddr", "08:00:2b:01:02:03"),
    ("varbit", "10101"),
    ("pg_lsn", "16/B374D848"),
    ("int4[]", "{1,NULL,3}"),
    ("int4[]", "[0:1][1:2]={{1,2},{3,4}}"),
    ("text[]", '{"",NULL,"null","a b","\\"\\\\}",plain}'),
    ("timestamptz[]", '{"2024-02-29 13:14:15+00"}'),
    ("int4range", "[1,5)"),
    ("tstzrange", '["2024-02-29 13:14:15+00",)'),
    ("int8multirange", "{[1,2),[7,)}"),
]


def message(kind, *parts):
    body = b"".join(parts)
    return kind + struct.pack("!i", len(body) + 4) + body


def text(value):
    return value.encode() + b"\0"


def run(sql, parameters=(), oids=(), parameter_format=0, result_format=0):
    """Parse, Bind, Execute, Sync."""
    packed = b"".join(struct.pack("!i", -1) if it is None else struct.pack("!i", len(it)) + it for it in parameters)
    return (
        message(b"P", b"\0", text(sql), struct.pack("!h", len(oids)), b"".join(struct.pack("!I", oid) for oid in oids))
        + message(
            b"B",
            b"\0\0",
            struct.pack("!hh", 1, parameter_format),
            struct.pack("!h", len(parameters)),
            packed,
            struct.pack("!hh", 1, result_format),
        )
        + message(b"E", b"\0", struct.pack("!i", 0))
        + message(b"S")
    )


class Connection:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=60)
        self.buffer = b""
        startup = struct.pack("!i", 196608) + text("user") + text("shop_app") + text("database") + text("shop") + b"\0"
        self.socket.sendall(struct.pack("!i", len(startup) + 4) + startup)
        self.answer()

    def message(self):
        while True:
            if len(self.buffer) >= 5:
                length = 1 + struct.unpack("!i", self.buffer[1:5])[0]
                if len(self.buffer) >= length:
                    whole, self.buffer = self.buffer[:length], self.buffer[length:]
                    return whole[:1], whole[5:]
            data = self.socket.recv(65536)
            if not data:
                raise SystemExit("the connection was closed")
            self.buffer += data

    def answer(self):
        """Everything up to ReadyForQuery."""
        messages = [self.message()]
        while messages[-1][0] != b"Z":
            messages.append(self.message())
        return messages

    def ask(self, request):
        self.socket.sendall(request)
        return self.answer()

    def value(self, request):
        """The only value of the only row."""
        answer = self.ask(request)
        rows = [body for kind, body in answer if kind == b"D"]
        if len(rows) != 1:
            raise SystemExit(f"no row: {answer}")
        return rows[0][6:]


def main():
    connection = Connection(sys.argv[1], int(sys.argv[2]))
    for name, literal in VALUES:
        quoted = '"char"' if name == "char" else name
        literal = literal.replace("'", "''")
        oid = int(connection.value(run(f"SELECT '{quoted}'::regtype::oid")))
        binary = connection.value(run(f"SELECT '{literal}'::{quoted}", result_format=1))
        printed = connection.value(run(f"SELECT '{literal}'::{quoted}"))
        for parameter_format, value in ((1, binary), (0, printed)):
            echoed = connection.value(run("SELECT $1", [value], [oid], parameter_format))
            print(f"{name}|{echoed.decode()}")
    # Nobody names the type: the text is the value, binary is what it is.
    connection.ask(run("SELECT 1 WHERE $1 IS NOT NULL AND $2 > 'a'", [b"text", None], [], 0))
    connection.ask(run("SELECT 1 WHERE $1 > 'a'", [b"abc"], [], 1))
    # Asked first, as drivers do.
    connection.socket.sendall(
        message(b"P", text("s"), text("SELECT $1::int4 + $2"), struct.pack("!h", 0))
        + message(b"D", b"S", text("s"))
        + message(b"S")
    )
    connection.answer()
    four = struct.pack("!i", 4)
    connection.ask(
        message(b"B", b"\0", text("s"), struct.pack("!hhh", 1, 1, 2), four + four, four + struct.pack("!i", 7), b"\0\0")
        + message(b"E", b"\0", struct.pack("!i", 0))
        + message(b"S")
    )


if __name__ == "__main__":
    main()
