"""Ways around a policy on the level of messages, one connection each. usage: deny_attacks.py HOST PORT

The agent may read; card numbers are masked. Each line says whether a card number came in clear, what the last
answer was, and whether the connection is usable afterwards. What the attacks would have written is for the
caller to look up.
"""

import sys

from deny_protocol import (
    DONE,
    FLUSH,
    SYNC,
    Connection,
    bind,
    call,
    close,
    data,
    describe,
    execute,
    parse,
    query,
    run,
)

CARDS = [b"4111111111111111", b"5500005555555559", b"4012888888881881", b"378282246310005", b"6011111111111117"]
DELETE = "DELETE FROM orders"
CARD = "SELECT card_number FROM customers ORDER BY id"
ALIAS = "SELECT card_number AS a FROM customers WHERE id = 1"
# Their numbers are the same in every server.
PG_READ_FILE, QUERY_TO_XML, SET_CONFIG = 3826, 2924, 2078

# Each is a list of what is sent at once, up to a number of ReadyForQuery.
ATTACKS = {
    "unnamed statement": [(run(ALIAS) + SYNC, 1)],
    "never described": [(parse(CARD, "s") + SYNC, 1), (bind("", "s") + execute() + SYNC, 1)],
    "never described, an alias": [(parse(ALIAS, "s") + SYNC, 1), (bind("", "s") + execute() + SYNC, 1)],
    "binary result": [(parse(CARD) + bind(formats=(1,)) + describe(b"P") + execute() + SYNC, 1)],
    "binary result, never described": [(parse(CARD) + bind(formats=(1,)) + execute() + SYNC, 1)],
    "binary bytea": [
        (parse("SELECT card_number::text::bytea FROM customers") + bind(formats=(1,)) + execute() + SYNC, 1)
    ],
    "suspended portal": [
        (query("BEGIN"), 1),
        (parse(CARD) + bind("p") + execute("p", 1) + SYNC, 1),
        (execute("p", 1) + SYNC, 1),
        (execute("p") + SYNC, 1),
        (query("COMMIT"), 1),
    ],
    "suspended unnamed portal, flushed": [(parse(CARD) + bind() + execute(rows=1) + FLUSH + execute(rows=1) + SYNC, 1)],
    "portal read by FETCH": [
        (query("BEGIN"), 1),
        (parse(CARD) + bind("pp") + SYNC, 1),
        (query("FETCH 2 FROM pp"), 1),
        (query("FETCH ALL FROM pp"), 1),
        (query("COMMIT"), 1),
    ],
    "cursor read by a portal": [
        (query("BEGIN"), 1),
        (query(f"DECLARE k CURSOR FOR {CARD}"), 1),
        (bind("other") + SYNC + execute("k") + SYNC, 2),
        (query("ROLLBACK"), 1),
    ],
    "unnamed statement after a simple query": [
        (parse(DELETE) + SYNC, 1),
        (query("SELECT 1"), 1),
        (bind() + execute() + SYNC, 1),
    ],
    "middle of a pipeline": [(run("SELECT 1") + run(DELETE) + run("SELECT 2") + SYNC, 1)],
    "second segment after an error": [(run("SELECT 1/0") + run("SELECT 7") + SYNC + run(DELETE) + SYNC, 2)],
    "parsed, executed much later": [
        (parse(DELETE, "late") + SYNC, 1),
        (query("SELECT 1"), 1),
        (bind("", "late") + execute() + SYNC, 1),
    ],
    "re-used name": [
        (parse("SELECT 1", "s") + SYNC, 1),
        (close(b"S", "s") + parse(DELETE, "s") + bind("", "s") + execute() + SYNC, 1),
        (bind("", "s") + execute() + SYNC, 1),
    ],
    "file name as a parameter": [
        (parse("SELECT pg_read_file($1)") + bind(values=(b"/etc/passwd",)) + execute() + SYNC, 1)
    ],
    "query as a parameter": [
        (
            parse("SELECT query_to_xml($1, true, true, '')")
            + bind(values=(CARD.encode(),))
            + execute()
            + SYNC,
            1,
        )
    ],
    "masked column beside parameters": [
        (
            parse("SELECT $1::text::regclass::oid, (SELECT card_number FROM customers WHERE id = $2::int)")
            + bind(values=(b"customers", b"1"))
            + execute()
            + SYNC,
            1,
        )
    ],
    "function call that reads a file": [(call(PG_READ_FILE, b"/etc/passwd"), 1)],
    "function call that runs a query": [(call(QUERY_TO_XML, CARD.encode(), b"t", b"t", b""), 1)],
    "function call that changes a setting": [(call(SET_CONFIG, b"role", b"postgres", b"f"), 1)],
    "COPY out, extended": [(parse("COPY customers(card_number) TO STDOUT") + bind() + execute() + SYNC, 1)],
    "COPY out of a long value": [
        (query("COPY (SELECT repeat('p', 20000) || card_number FROM customers) TO STDOUT"), 1)
    ],
    "COPY in, another string behind it": [
        (query(f"COPY products FROM STDIN; {DELETE}"), 1),
    ],
    "COPY in, extended, its data ahead": [
        (parse("COPY products FROM STDIN") + bind() + execute() + data(b"9\tx\t1\t1\n") + DONE + SYNC, 1)
    ],
    "second result of a string": [(query(f"SELECT title FROM products; {ALIAS}; {CARD}"), 1)],
    "behind a failed transaction": [
        (query("BEGIN"), 1),
        (query("SELECT 1/0"), 1),
        (query(f"ROLLBACK; {DELETE}"), 1),
        (query("ROLLBACK"), 1),
    ],
    "implicit transaction": [(query(f"{DELETE}; SELECT 1/0"), 1), (query("SELECT count(*) FROM orders"), 1)],
    "notification": [(query("LISTEN ch"), 1), (query("NOTIFY ch, '4111111111111111'"), 1)],
    "error of a block": [
        (
            query("DO $$ BEGIN EXECUTE 'SELEC ' || (SELECT card_number FROM customers WHERE id = 1); END $$"),
            1,
        )
    ],
    "error of a conversion": [(query("SELECT card_number::int FROM customers"), 1)],
    "type as a channel": [(run("SELECT card_number::text::xml FROM customers WHERE id = 1") + SYNC, 1)],
    "column name as a channel": [
        (
            query(
                "DO $$ BEGIN EXECUTE format('CREATE TEMP VIEW nm AS SELECT 1 AS %I',"
                " (SELECT card_number FROM customers WHERE id = 1)); END $$; SELECT * FROM nm"
            ),
            1,
        )
    ],
    "what ANALYZE tells": [(query("ANALYZE VERBOSE customers"), 1)],
    "several statements in a Parse": [(parse(f"SELECT 1; {DELETE}") + bind() + execute() + SYNC, 1)],
    "one value of 50 MB": [(query("SELECT repeat('x', 50000000) || card_number FROM customers"), 1)],
}


def tried(attack):
    connection = Connection()
    answer = ""
    for sent, syncs in ATTACKS[attack]:
        connection.send(sent)
        answer = connection.until(b"Z", syncs)
    clear = any(card in connection.received for card in CARDS) or b"root:" in connection.received
    usable = connection.ask(query("SELECT 1")) == "T D C:SELECT 1 Z:I"
    connection.close()
    print(f"{attack}: {'IN CLEAR' if clear else 'held'}, {'usable' if usable else 'NOT USABLE'}; {answer}", flush=True)


for attack in ATTACKS:
    tried(attack)
for spelling in ("database", "true", "on", "yes", "1", "TRUE", "t", "y"):
    connection = Connection(replication=spelling)
    print(f"replication={spelling}: {connection.greeting}", flush=True)
    connection.close()
