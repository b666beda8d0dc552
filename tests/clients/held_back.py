"""What holds rows back, under names that come to stand for something else.

usage: held_back.py HOST PORT SCENE

Prints one line per step: what the agent was answered.
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


def describe(kind, name):
    return message(b"D", kind, text(name))


def close(kind, name):
    return message(b"C", kind, text(name))


SYNC = message(b"S")


class Connection:
    def __init__(self):
        self.socket = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
        self.buffer = b""
        parameters = text("user") + text("shop_app") + text("database") + text("shop") + b"\0"
        startup = struct.pack("!i", 196608) + parameters
        self.socket.sendall(struct.pack("!i", len(startup) + 4) + startup)
        self.answer(1)

    def message(self):
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

    def answer(self, readies):
        messages = []
        while readies:
            messages.append(self.message())
            readies -= messages[-1][:1] == b"Z"
        return messages

    def says(self, *sent):
        """The answer in short: the types of the messages, values, SQLSTATEs and the transaction's status."""
        sent = b"".join(sent)
        self.socket.sendall(sent)
        words, at, readies = [], 0, 0
        while at < len(sent):
            readies += sent[at : at + 1] in (b"Q", b"S")
            at += 1 + struct.unpack("!i", sent[at + 1 : at + 5])[0]
        for one in self.answer(readies):
            kind = one[:1].decode()
            if kind == "E":
                fields = {part[:1]: part[1:] for part in one[5:].split(b"\0") if part}
                words.append("E:" + fields[b"C"].decode())
            elif kind == "D":
                words.append("D:" + one[11:].decode(errors="replace"))
            elif kind == "Z":
                words.append("Z:" + one[5:6].decode())
            else:
                words.append(kind)
        return " ".join(words)


def steps():
    connection = Connection()

    def step(*sent):
        print(connection.says(*sent), flush=True)

    return step


CARDS = "SELECT card_number FROM customers ORDER BY id"
OTHER = "SELECT title FROM products ORDER BY id"


def executed():
    """A portal runs EXECUTE and holds back rows; then the name stands for another statement."""
    step = steps()
    step(query("BEGIN; PREPARE q AS " + CARDS))
    step(parse("runs", "EXECUTE q"), bind("p", "runs"), execute("p", 1), SYNC)
    step(query("DEALLOCATE q; PREPARE q AS " + OTHER))
    step(execute("p", 1), SYNC)
    step(query("SAVEPOINT s"))
    step(query("FETCH 1 FROM p"))
    step(query("ROLLBACK TO s"))
    step(parse("", "FETCH 1 FROM p"), bind("", ""), execute(""), SYNC)
    step(query("ROLLBACK"))


def fetched():
    """The same of a cursor, and at one remove."""
    step = steps()
    step(query("BEGIN; DECLARE c CURSOR FOR " + CARDS))
    step(parse("runs", "FETCH ALL FROM c"), bind("p", "runs"), execute("p", 1), SYNC)
    step(parse("more", "FETCH ALL FROM p"), bind("r", "more"), SYNC)
    step(query("CLOSE c; DECLARE c CURSOR FOR " + OTHER + "; SAVEPOINT s"))
    step(query("FETCH 1 FROM p"))
    step(query("ROLLBACK TO s"))
    step(execute("r", 1), SYNC)
    step(query("ROLLBACK"))


def begun():
    """FETCH makes the portal hold back rows, before it is executed itself."""
    step = steps()
    step(query("BEGIN; PREPARE q AS " + CARDS))
    step(parse("runs", "EXECUTE q"), bind("p", "runs"), SYNC)
    step(query("SAVEPOINT s"))
    step(query("FETCH 1 FROM p"))
    step(query("ROLLBACK TO s"))
    step(query("DEALLOCATE q; PREPARE q AS " + OTHER))
    step(execute("p", 1), SYNC)
    step(query("ROLLBACK"))


def dropped():
    """A cursor whose table is gone."""
    step = steps()
    step(query("DECLARE c CURSOR WITH HOLD FOR " + CARDS))
    step(query("FETCH 1 FROM c"))
    step(query("DROP TABLE customers CASCADE"))
    step(query("FETCH 1 FROM c"))


def renamed():
    """What closes one name closes another, in an encoding in which the server cuts both to the same."""
    step = steps()
    one, other = "\u00e9" * 30 + "1", "\u00e9" * 30 + "2"
    step(parse(one, "SELECT 1"), SYNC)
    step(close(b"S", other), parse(other, "SELECT 2"), SYNC)
    step(bind("", one), execute(""), SYNC)
    step(query("SELECT 3"))


def copied():
    """EXECUTE of a COPY that the protocol has prepared."""
    step = steps()
    step(parse("q", "COPY customers TO STDOUT"), SYNC)
    step(query("EXECUTE q"))
    step(bind("", "q"), execute(""), SYNC)


def unnamed():
    """A denied Parse takes the unnamed statement away."""
    step = steps()
    step(parse("", "SELECT 1"), SYNC)
    step(parse("", "SELECT upper(card_number) FROM customers"), SYNC)
    step(bind("", ""), execute(""), SYNC)
    step(query("BEGIN"))
    step(parse("", "SELECT upper(card_number) FROM customers"), bind("", ""), execute(""), SYNC)
    step(parse("", "SELECT 1"), SYNC)
    step(query("ROLLBACK"))
    step(parse("", "SELECT 2"), SYNC)
    step(bind("", "missing"), parse("", "SELECT upper(card_number) FROM customers"), SYNC)
    step(bind("", ""), execute(""), SYNC)


globals()[sys.argv[3]]()
