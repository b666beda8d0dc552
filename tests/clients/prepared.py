"""Names for statements and cursors, given and used by protocol and SQL in every mixture.

usage: prepared.py HOST PORT SCENE

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
    def __init__(self, database="shop"):
        self.socket = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
        self.buffer = b""
        parameters = {"user": "shop_app", "database": database, "client_encoding": "UTF8"}
        parameters = b"".join(text(word) for pair in parameters.items() for word in pair) + b"\0"
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


def known():
    """Each way to a name, from each way that made it."""
    connection = Connection()

    def step(*sent):
        print(connection.says(*sent))

    step(parse("del", "DELETE FROM products WHERE id = -1"), SYNC)
    step(query("EXECUTE del"))
    step(query("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE del"))
    step(query("PREPARE upd (int) AS UPDATE products SET stock = stock WHERE id = $1"))
    step(message(b"B", text(""), text("upd"), struct.pack("!hhi", 0, 1, 2), b"-1", struct.pack("!h", 0)), execute(""), SYNC)
    step(query("BEGIN; DECLARE Cards CURSOR FOR SELECT card_number FROM customers ORDER BY id"))
    step(query("FETCH 1 FROM cards"))
    step(execute("cards", 1), SYNC)
    step(query("MOVE 1 IN cards"))
    step(parse("", "SELECT title FROM products ORDER BY id"), bind("shown", ""), SYNC)
    step(query("FETCH 1 FROM shown"))
    step(query("COMMIT"))
    step(query("FETCH 1 FROM cards"))
    step(query("BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT id FROM products ORDER BY id; COMMIT"))
    step(query("FETCH 1 FROM held"))
    step(query("DEALLOCATE del"))
    step(query("EXECUTE del"))
    step(bind("", "del"), execute(""), SYNC)


def reused():
    """Names that come to mean something else, or do not."""
    connection = Connection()

    def step(*sent):
        print(connection.says(*sent))

    step(query("PREPARE q AS DELETE FROM products WHERE id = -1"))
    # Fails: there is one. It must be decided as that one, also before the failure is known.
    step(query("PREPARE q AS SELECT 'harmless'"), query("EXECUTE q"))
    step(parse("q", "SELECT 'harmless'"), SYNC, bind("", "q"), execute(""), SYNC)
    step(bind("", "missing"), close(b"S", "q"), SYNC, query("EXECUTE q"))
    step(query("BEGIN; DEALLOCATE q; ROLLBACK"))
    step(query("PREPARE q AS SELECT 'after all'"), query("EXECUTE q"))
    long = "n" * 63
    step(query(f"PREPARE {long}more AS DELETE FROM products WHERE id = -2"))
    step(query(f"EXECUTE {long}"))
    step(bind("", long + "other"), execute(""), SYNC)
    step(parse("chain", f"EXECUTE {long}"), SYNC, query("EXECUTE chain"))
    step(bind("", "chain"), execute(""), SYNC)
    # Rolled back to before it was declared: the name is free for another.
    step(query("BEGIN; SAVEPOINT s; DECLARE c CURSOR FOR SELECT id FROM orders; ROLLBACK TO s"))
    step(query("DECLARE c CURSOR FOR SELECT id FROM products ORDER BY id"), query("FETCH 1 FROM c"))
    step(query("ROLLBACK"))
    # Some rows at a time; the decision is made each time.
    step(query("BEGIN"))
    step(parse("", "SELECT id FROM products ORDER BY id"), bind("p", ""), execute("p", 1), SYNC)
    step(execute("p", 1), SYNC)
    step(query("SELECT 1"), execute("p", 1), SYNC)
    step(parse("", "SELECT 2"), bind("", ""), SYNC, query("SELECT 3"), execute(""), SYNC)
    step(query("ROLLBACK"))
    # What stands behind an error is skipped, a simple query too.
    connection.socket.sendall(parse("", "SELECT no_such_column") + query("SELECT 'skipped'") + bind("", "") + execute(""))
    print(connection.says(SYNC))


def strangers():
    """Names that only code can have made, and names that nobody has."""
    connection = Connection()

    def step(*sent):
        print(connection.says(*sent))

    step(query("EXECUTE nobody"))
    step(query("BEGIN"))
    step(query("SELECT open_hidden()"))
    step(query("SAVEPOINT s"))
    step(query("FETCH 1 FROM hidden"))
    step(query("ROLLBACK TO s"))
    step(execute("hidden", 1), SYNC)
    step(query("ROLLBACK TO s"))
    step(describe(b"P", "hidden"), SYNC)
    step(query("FETCH 1 FROM nobody"))
    step(query("ROLLBACK TO s"))
    step(execute("nobody"), SYNC)
    step(query("ROLLBACK"))
    step(query("SELECT make_hidden()"))
    step(query("EXECUTE hidden"))
    step(bind("", "hidden"), execute(""), SYNC)
    step(query("EXECUTE nobody"))
    step(bind("", "nobody"), execute(""), SYNC)
    step(query("SELECT 'still here'"))


def changed():
    """A prepared statement whose table comes to show what is masked."""
    connection = Connection()
    print(connection.says(parse("s", "SELECT id FROM shown"), bind("", "s"), execute("", 1), SYNC))
    print("ready", flush=True)
    sys.stdin.readline()
    print(connection.says(bind("", "s"), execute("", 1), SYNC))
    print(connection.says(query("SELECT 1")))


def plans():
    """The same text, other columns: what is masked stays masked."""
    connection = Connection()

    def step(*sent):
        print(connection.says(*sent))

    step(parse("all", "SELECT * FROM customers WHERE id = 1"), bind("", "all"), execute(""), SYNC)
    step(query("ALTER TABLE customers ADD note text DEFAULT 'new'"))
    step(bind("", "all"), execute(""), SYNC)
    step(parse("", "SELECT * FROM customers WHERE id = 1"), bind("", ""), execute(""), SYNC)
    step(query("PREPARE again AS SELECT card_number FROM customers WHERE id = 1"))
    step(query("ALTER TABLE customers ALTER card_number TYPE varchar(30)"))
    step(query("EXECUTE again"))
    step(query("DEALLOCATE again; PREPARE again AS SELECT card_number FROM customers WHERE id = 1; EXECUTE again"))


def unread():
    """Texts that the server's encoding has no letters for: it refuses them before it does anything."""
    connection = Connection("latin")

    def step(*sent):
        print(connection.says(*sent))

    step(parse("", "SELECT 'kept'"), SYNC)
    step(parse("", "SELECT '€'"), SYNC)
    step(bind("", ""), execute(""), SYNC)
    step(query("SELECT '€'"))
    step(bind("", ""), execute(""), SYNC)
    step(parse("", "SELECT no_such_column"), SYNC)
    step(bind("", ""), execute(""), SYNC)


SCENES = {
    "known": known,
    "reused": reused,
    "strangers": strangers,
    "changed": changed,
    "plans": plans,
    "unread": unread,
}
SCENES[sys.argv[3]]()
