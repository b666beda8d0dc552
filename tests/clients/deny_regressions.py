"""What other proxies get wrong, one case by hand. usage: deny_regressions.py HOST PORT CASE

Prints a line for each answer: the types of its messages, with SQLSTATEs, command tags and states.
"""

import sys
import time

from deny_protocol import FLUSH, SYNC, Connection, bind, execute, message, parse, query

DENIED = "DELETE FROM orders"


def a_denied_simple_query(c):
    """Whoever sends simple queries never sends a Sync: what waits for one waits for ever."""
    yield c.ask(query(DENIED))
    yield c.ask(query(DENIED), query("SELECT 1"), syncs=2)
    yield c.ask(query(f"SELECT 1; {DENIED}"))
    yield c.ask(query("SELECT 1"))


def transaction_states(c):
    """Also behind the gateway's own errors the state is the server's, simple and extended."""
    yield c.ask(query(DENIED))
    yield c.ask(query("BEGIN"))
    yield c.ask(query(DENIED))
    yield c.ask(query("SELECT 1"))
    yield c.ask(query("ROLLBACK"))
    yield c.ask(query("BEGIN"))
    yield c.ask(parse(DENIED), bind(), execute(), SYNC)
    yield c.ask(parse("SELECT 1"), bind(), execute(), SYNC)
    yield c.ask(query("COMMIT"))
    yield c.ask(query("SELECT 1"))


def null_parameters(c):
    """NULL, an empty value and the text NULL are three values, in both formats."""
    select = parse("SELECT $1::text IS NULL, $2::text IS NULL, $3::text IS NULL, $1, $2, $3")
    for formats in ((), (1,), (0, 1, 0)):
        c.send(select, bind(values=(None, b"", b"NULL"), value_formats=formats), execute(), SYNC)
        yield " ".join(str(values(body)) for kind, body in messages(c) if kind == b"D")
    c.send(parse("SELECT $1::int, count(*) FROM orders WHERE id = $1"), bind(values=(None,)), execute(), SYNC)
    yield " ".join(str(values(body)) for kind, body in messages(c) if kind == b"D")


def messages(c):
    kind = b""
    while kind != b"Z":
        kind, body = c.message()
        yield kind, body


def values(row):
    """The values of a DataRow."""
    found, at = [], 2
    for _ in range(int.from_bytes(row[:2])):
        length = int.from_bytes(row[at : at + 4], signed=True)
        at += 4
        found.append(None if length < 0 else row[at : at + length].decode())
        at += max(length, 0)
    return found


def split_frames(c):
    """One byte at a time, and two messages and a half at once."""
    for byte in query("SELECT 'in pieces'"):
        c.send(bytes([byte]))
        time.sleep(0.002)
    yield c.until(b"Z")
    for byte in query(DENIED):
        c.send(bytes([byte]))
        time.sleep(0.002)
    yield c.until(b"Z")
    all_of_it = query("SELECT 'first'") + query(DENIED) + query("SELECT 'third'")
    c.send(all_of_it[:-9])
    time.sleep(0.05)
    c.send(all_of_it[-9:])
    yield c.until(b"Z", 3)
    # Only the type, then the length, then the rest.
    whole = parse("SELECT 'in a Parse'") + bind() + execute() + SYNC
    c.send(whole[:1])
    time.sleep(0.05)
    c.send(whole[1:5])
    time.sleep(0.05)
    c.send(whole[5:])
    yield c.until(b"Z")


def never_described(c):
    """The client knows the columns and never asks: their masks hold, and no answer it did not ask for comes."""
    select = "SELECT id, card_number FROM customers ORDER BY id"
    yield c.ask(parse(select), bind(), execute(), SYNC)
    yield c.ask(parse(select, "s"), SYNC)
    yield c.ask(bind("", "s"), execute(), SYNC)
    yield c.ask(bind("p", "s"), execute("p", 2), execute("p"), SYNC)
    c.send(bind("", "s"), execute(), FLUSH)
    yield c.until(b"C")
    yield c.ask(SYNC)
    yield shown(c)


def shown(c):
    """How many card numbers there were, as their masks show them and in clear."""
    masked = c.received.count(b"************1111")
    return f"masked {masked}, clear {c.received.count(b'4111111111111111')}"


def prepared_statements(c):
    """Prepared once, run by name alone."""
    yield c.ask(parse("SELECT title FROM products WHERE id = 1", "by_name"), SYNC)
    yield c.ask(bind("", "by_name"), execute(), SYNC)
    yield c.ask(bind("", "by_name"), execute(), SYNC)
    yield c.ask(parse(DENIED, "denied"), SYNC)
    yield c.ask(bind("", "denied"), execute(), SYNC)


def sql_execute(c):
    """Prepared by a message, run by SQL; prepared by SQL, run by messages."""
    yield c.ask(parse("SELECT title FROM products WHERE id = 2", "of_protocol"), SYNC)
    yield c.ask(query("EXECUTE of_protocol"))
    yield c.ask(parse("SELECT card_number FROM customers WHERE id = 1", "masked"), SYNC)
    yield c.ask(query("EXECUTE masked"))
    yield c.ask(query("PREPARE of_sql AS SELECT price FROM products WHERE id = 3"))
    yield c.ask(bind("", "of_sql"), execute(), SYNC)
    yield shown(c)


connection = Connection()
for answer in globals()[sys.argv[3]](connection):
    print(answer, flush=True)
connection.send(message(b"X"))
