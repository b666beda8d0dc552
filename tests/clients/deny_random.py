"""Random messages in random orders, some of them denied; one JSON line per conversation.

usage: deny_random.py HOST PORT WAY SEED CONVERSATIONS

Run as a role that lacks the privilege and as an agent whose policy denies it, the lines must be equal. Left out
is what differs for a reason (see tests/deny_table/explained.rs): strings that are denied for a later statement.
In a failed transaction the gateway still says that a statement is denied, where the server says that the
transaction has failed: both are «refused» here.
"""

import json
import random
import sys

from deny_protocol import FLUSH, SYNC, Connection, bind, close, describe, execute, parse, query

DENIED = ["DELETE FROM vault.ledger", "SELECT n FROM vault.ledger", "COPY vault.ledger TO STDOUT"]
ALLOWED = [
    "SELECT n FROM generate_series(1, 4) AS n",
    "SELECT id, title FROM products ORDER BY id",
    "INSERT INTO journal VALUES (1, 'random')",
    "SELECT 1 / (n - 2) FROM generate_series(1, 4) AS n",
    "SELECT no_such_column",
    "SAVEPOINT here",
    "ROLLBACK TO here",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "",
]
STATEMENTS = ["", "s", "t"]
PORTALS = ["", "p", "q"]
# A COPY is refused only when it is executed, as statements that are no queries are.
PARSED_AND_DENIED = DENIED[:2]


def message(of):
    """A message, and what to call it."""
    kind = of.choices("QqPpBDECHS", [3, 2, 6, 2, 6, 3, 7, 2, 1, 5])[0]
    statement, portal = of.choice(STATEMENTS), of.choice(PORTALS)
    if kind == "Q":
        sql = of.choice(ALLOWED)
        return f"Q({sql})", query(sql)
    if kind == "q":
        sql = of.choice(DENIED) + of.choice(["", "; SELECT 1", "; COMMIT"])
        return f"Q({sql})", query(sql)
    if kind == "P":
        sql = of.choice(ALLOWED)
        return f"P({statement} {sql})", parse(sql, statement)
    if kind == "p":
        sql = of.choice(PARSED_AND_DENIED)
        return f"P({statement} {sql})", parse(sql, statement)
    if kind == "B":
        return f"B({portal} {statement})", bind(portal, statement)
    if kind in "DC":
        what = describe if kind == "D" else close
        if of.random() < 0.5:
            return f"{kind}(S {statement})", what(b"S", statement)
        return f"{kind}(P {portal})", what(b"P", portal)
    if kind == "E":
        rows = of.choice([0, 0, 1, 2])
        return f"E({portal} {rows})", execute(portal, rows)
    return kind, FLUSH if kind == "H" else SYNC


def group(of):
    """What a driver would send for one statement, or one message that nobody asked for."""
    if of.random() < 0.4:
        return [message(of)]
    denied = of.random() < 0.2
    statement, portal = of.choice(STATEMENTS), of.choice(PORTALS)
    sql = of.choice(PARSED_AND_DENIED if denied else ALLOWED)
    sent = [(f"P({statement} {sql})", parse(sql, statement))]
    # A name can be given once: most often it is free.
    if statement and of.random() < 0.8:
        sent.insert(0, (f"C(S {statement})", close(b"S", statement)))
    if portal and of.random() < 0.8:
        sent.append((f"C(P {portal})", close(b"P", portal)))
    sent.append((f"B({portal} {statement})", bind(portal, statement)))
    if of.random() < 0.5:
        sent.append((f"D(P {portal})", describe(b"P", portal)))
    for _ in range(of.choice([1, 1, 2, 3])):
        rows = of.choice([0, 1, 2])
        sent.append((f"E({portal} {rows})", execute(portal, rows)))
    return sent + [("S", SYNC)] * (of.random() < 0.7)


def conversed(of):
    names, sent = zip(*[one for _ in range(of.randint(2, 10)) for one in group(of)])
    connection = Connection()
    # Whatever state it has come to, this ends it.
    ending = [SYNC, query("ROLLBACK"), query("SELECT 'the end'")]
    if of.random() < 0.5:
        connection.send(*sent, *ending)
    else:
        for part in [*sent, *ending]:
            connection.send(part)
    words = []
    while words[-4:] != ["T", "the end", "C:SELECT 1", "Z:I"]:
        kind, body = connection.message()
        if not kind:
            words.append("closed")
            break
        word = "the end" if body.endswith(b"the end") else connection.word(kind, body)
        words.append(word.replace("/42501", "/refused").replace("/25P02", "/refused"))
    connection.close()
    return " ".join(names), " ".join(words), connection.messages


def journal():
    connection = Connection()
    connection.send(query("SELECT count(*) FROM journal"))
    while (found := connection.message())[0] != b"D":
        pass
    connection.close()
    return int(found[1][6:])


seed, conversations = int(sys.argv[4]), int(sys.argv[5])
rows = journal()
for number in range(conversations):
    # Each has a seed of its own, so that one can be tried alone.
    said, heard, messages = conversed(random.Random(f"{seed} {number}"))
    now = journal()
    line = {"order": f"{number}: {said}", "seen": [heard, f"journal {now - rows:+}"], "messages": messages}
    print(json.dumps(line), flush=True)
    rows = now
