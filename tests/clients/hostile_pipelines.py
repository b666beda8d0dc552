"""Pipelines made to confuse: names that come to mean something else, and answers that never come.

usage: hostile_pipelines.py HOST PORT
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


def parse(name, sql):
    return message(b"P", text(name), text(sql), struct.pack("!h", 0))


def bind(portal, statement):
    return message(b"B", text(portal), text(statement), struct.pack("!hhh", 0, 0, 0))


def execute(portal, rows=0):
    return message(b"E", text(portal), struct.pack("!i", rows))


def close(kind, name):
    return message(b"C", kind, text(name))


SYNC = message(b"S")
COPY_DONE = message(b"c")


class Connection:
    def __init__(self):
        self.socket = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
        parameters = text("user") + text("shop_app") + text("database") + text("shop") + b"\0"
        startup = struct.pack("!i", 196608) + parameters
        self.buffer = b""
        self.ask(struct.pack("!i", len(startup) + 4) + startup)

    def ask(self, *sent):
        """Sends, and answers everything up to the next ReadyForQuery."""
        self.socket.sendall(b"".join(sent))
        answer = b""
        while True:
            if len(self.buffer) >= 5:
                length = 1 + struct.unpack("!i", self.buffer[1:5])[0]
                if len(self.buffer) >= length:
                    whole, self.buffer = self.buffer[:length], self.buffer[length:]
                    answer += whole
                    if whole[:1] == b"Z":
                        return answer
                    continue
            data = self.socket.recv(65536)
            if not data:
                raise SystemExit("the connection was closed")
            self.buffer += data


def masked(name, make, use, unmake):
    """Rows that a suspended portal holds back, after the name it runs has come to mean another thing."""
    connection = Connection()
    connection.ask(query("BEGIN"))
    connection.ask(query(f"{make} SELECT card_number FROM customers ORDER BY id"))
    rows = connection.ask(parse("", use), bind("p", ""), execute("p", 1), SYNC)
    connection.ask(query(f"{unmake}; {make} SELECT title FROM products"))
    rows += connection.ask(execute("p"), SYNC)
    cards = ["4111111111111111", "5500005555555559", "4012888888881881", "378282246310005", "6011111111111117"]
    clear = [card for card in cards if card.encode() in rows]
    endings = [card for card in cards if card[-4:].encode() in rows]
    print(f"{name}: {'masked' if len(endings) == 5 and not clear else rows}")


def answered(name, flood, last):
    connection = Connection()
    answer = connection.ask(flood, last)
    print(f"{name}: {'answered' if answer else 'not answered'}")


masked("FETCH of another cursor", "DECLARE k CURSOR FOR", "FETCH ALL FROM k", "CLOSE k")
masked("EXECUTE of another statement", "PREPARE k AS", "EXECUTE k", "DEALLOCATE k")
answered("20000 skipped messages", parse("", "SELEC") + bind("", "") * 20000, SYNC)
answered("20000 ends of no copy", COPY_DONE * 20000, query("SELECT 1"))

# PostgreSQL tells names apart by their first 63 bytes.
connection, name = Connection(), "n" * 63
connection.ask(parse(name + "2", "SELECT 'harmless'"), SYNC)
connection.ask(close(b"S", name + "1"), parse(name + "1", "SELECT 'long name'"), SYNC)
connection.ask(bind("", name + "2"), execute(""), SYNC)

connection = Connection()
connection.ask(parse("s", "SELECT 'harmless'"), SYNC)
connection.ask(query("DEALLOCATE s; PREPARE s AS SELECT 'other'"))
connection.ask(bind("prepared in SQL", "s"), execute("prepared in SQL"), SYNC)

# The Bind that would replace the portal is skipped, and the portal outlives the savepoint.
connection = Connection()
connection.ask(query("BEGIN"))
connection.ask(parse("", "SELECT 'kept portal'"), bind("p", ""), SYNC)
connection.ask(query("SAVEPOINT before"))
connection.ask(parse("h", "SELECT 'harmless'"), SYNC)
connection.ask(parse("", "SELECT no_such_column"), bind("p", "h"), SYNC)
connection.ask(query("ROLLBACK TO before"))
connection.ask(execute("p"), SYNC)
