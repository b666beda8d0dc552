"""Denied statements in every order of messages, by hand; one JSON line each. usage: deny_wire.py HOST PORT WAY

Run as a role that lacks the privilege and as an agent whose policy denies it, the lines must be equal: the
types of all messages in their order, SQLSTATEs, command tags and the status in every ReadyForQuery.
"""

import json
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

# Without USAGE on its schema the server refuses it when it is parsed, which is where the gateway decides.
DENIED = "DELETE FROM vault.ledger"
READ = "SELECT n FROM vault.ledger"
# Without DELETE or SELECT on the table it is refused when it is bound or executed.
BY_TABLE = "DELETE FROM orders"
READ_BY_TABLE = "SELECT id FROM parcels"
NOTE = "INSERT INTO journal VALUES (1, 'noted')"
ROWS = "SELECT n FROM generate_series(1, 5) AS n"
COPY = b"1\tcopied\n2\tcopied\n"


def simple(c):
    yield c.ask(query(DENIED))


def simple_read(c):
    yield c.ask(query(READ))


def simple_by_table(c):
    yield c.ask(query(BY_TABLE))


def simple_again(c):
    for _ in range(3):
        yield c.ask(query(DENIED))
        yield c.ask(query(NOTE))


def two_simple_queries_at_once(c):
    yield c.ask(query(DENIED), query(NOTE), query(DENIED), syncs=3)


def multi_first(c):
    yield c.ask(query(f"{DENIED}; {NOTE}; SELECT 1"))


def multi_middle(c):
    yield c.ask(query(f"{NOTE}; {DENIED}; {NOTE}"))


def multi_last(c):
    yield c.ask(query(f"SELECT 1; {NOTE}; {DENIED}"))


def multi_with_a_transaction(c):
    yield c.ask(query(f"BEGIN; {NOTE}; {DENIED}; COMMIT"))
    yield c.ask(query("ROLLBACK"))


def multi_behind_a_commit(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(query(f"COMMIT; {DENIED}"))
    yield c.ask(query("ROLLBACK"))


def in_a_transaction(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(query(NOTE))
    yield c.ask(query(DENIED))
    yield c.ask(query("SELECT 'too early'"))
    yield c.ask(run("SELECT 'too early'"), SYNC)
    yield c.ask(query("COMMIT"))


def multi_in_a_transaction(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(query(f"{DENIED}; {NOTE}"))
    yield c.ask(query("ROLLBACK"))


def extended_in_a_transaction(c):
    yield c.ask(run("BEGIN"), SYNC)
    yield c.ask(run(NOTE), SYNC)
    yield c.ask(run(DENIED), SYNC)
    yield c.ask(run("SELECT 'too early'"), SYNC)
    yield c.ask(run("ROLLBACK"), SYNC)


def in_a_failed_transaction(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(query("SELECT 1 / 0"))
    yield c.ask(query(DENIED))
    yield c.ask(query("ROLLBACK"))


def with_savepoints(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(query(NOTE))
    yield c.ask(query("SAVEPOINT outer_one"))
    yield c.ask(query(NOTE))
    yield c.ask(query("SAVEPOINT inner_one"))
    yield c.ask(query(DENIED))
    yield c.ask(query("RELEASE inner_one"))
    yield c.ask(query("ROLLBACK TO inner_one"))
    yield c.ask(query(NOTE))
    yield c.ask(run(DENIED), SYNC)
    yield c.ask(query("ROLLBACK TO outer_one"))
    yield c.ask(query(NOTE))
    yield c.ask(query("COMMIT"))


def savepoints_in_a_pipeline(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(run("SAVEPOINT here"), run(NOTE), run(DENIED), run(NOTE), SYNC)
    yield c.ask(run("ROLLBACK TO here"), run(NOTE), SYNC)
    yield c.ask(query("COMMIT"))


def pipelined_first(c):
    yield c.ask(run(DENIED), run(NOTE), run(NOTE), SYNC)


def pipelined_middle(c):
    yield c.ask(run(NOTE), run(DENIED), run(NOTE), SYNC)


def pipelined_last(c):
    yield c.ask(run(NOTE), run(NOTE), run(DENIED), SYNC)


def pipelined_twice(c):
    yield c.ask(run(NOTE), run(DENIED), run(DENIED), SYNC)


def pipelined_over_syncs(c):
    yield c.ask(run(NOTE), SYNC, run(DENIED), run(NOTE), SYNC, run(NOTE), SYNC, syncs=3)


def pipelined_every_second(c):
    yield c.ask(*[run(NOTE) + SYNC + run(DENIED) + SYNC] * 10, syncs=20)


def pipelined_with_flushes(c):
    yield c.ask(run(NOTE), FLUSH, run(DENIED), FLUSH, run(NOTE), FLUSH, SYNC)


def pipelined_by_table(c):
    yield c.ask(run(NOTE), run(BY_TABLE), run(NOTE), SYNC)


def pipelined_before_a_query(c):
    """What is skipped up to the Sync is a simple query, too."""
    yield c.ask(run(DENIED), query(NOTE), SYNC)


def pipelined_behind_an_error(c):
    yield c.ask(run("SELECT 1 / 0"), run(DENIED), SYNC)


def at_parse(c):
    yield c.ask(parse(DENIED), SYNC)


def at_parse_flushed(c):
    c.send(parse(DENIED), FLUSH)
    yield c.until(b"E")
    yield c.ask(bind(), execute(), SYNC)


def at_parse_of_a_name(c):
    yield c.ask(parse(DENIED, "s"), SYNC)
    yield c.ask(bind("", "s"), execute(), SYNC)
    yield c.ask(parse("SELECT 'another'", "s"), bind("", "s"), execute(), SYNC)


def at_parse_of_a_name_in_use(c):
    yield c.ask(parse(ROWS, "s"), SYNC)
    yield c.ask(parse(DENIED, "s"), SYNC)
    yield c.ask(bind("", "s"), execute(), SYNC)


def at_parse_behind_another(c):
    """What was prepared in front of the denial stays."""
    yield c.ask(parse(ROWS, "s"), parse(DENIED, "t"), parse(ROWS, "u"), SYNC)
    yield c.ask(bind("", "s"), execute(), SYNC)
    yield c.ask(bind("", "u"), execute(), SYNC)


def at_parse_in_place_of_the_unnamed(c):
    yield c.ask(parse(ROWS), SYNC)
    yield c.ask(parse(DENIED), SYNC)
    yield c.ask(bind(), execute(), SYNC)


def at_parse_in_place_of_the_unnamed_in_a_pipeline(c):
    yield c.ask(parse(ROWS), SYNC, parse(DENIED), SYNC, bind(), execute(), SYNC, syncs=3)
    yield c.ask(parse(ROWS), SYNC, run(NOTE), run(DENIED), SYNC, bind(), execute(), SYNC, syncs=3)


def at_parse_in_place_of_the_unnamed_in_a_transaction(c):
    """Named, because a simple query takes the unnamed statement away, too."""
    yield c.ask(parse("BEGIN", "b"), bind("", "b"), execute(), parse("ROLLBACK", "r"), parse(ROWS), SYNC)
    yield c.ask(parse(DENIED), SYNC)
    yield c.ask(bind("", "r"), execute(), SYNC)
    yield c.ask(bind(), execute(), SYNC)


def at_parse_behind_an_error_beside_the_unnamed(c):
    """The server skips the denied one, and so the unnamed statement stays."""
    yield c.ask(parse(ROWS), SYNC)
    yield c.ask(bind("", "nobody"), parse(DENIED), SYNC)
    yield c.ask(bind(), execute(), SYNC)


def at_parse_of_a_name_beside_the_unnamed(c):
    yield c.ask(parse(ROWS), SYNC)
    yield c.ask(parse(DENIED, "s"), SYNC)
    yield c.ask(bind(), execute(), SYNC)


def simple_beside_the_unnamed(c):
    yield c.ask(parse(ROWS), SYNC)
    yield c.ask(query(DENIED))
    yield c.ask(bind(), execute(), SYNC)


def at_execute_beside_the_unnamed(c):
    statement, bound = AT_EXECUTE[sys.argv[3]]
    yield c.ask(parse(ROWS), SYNC)
    yield c.ask(parse(statement, "s"), bind("", "s", **bound), execute(), SYNC)
    yield c.ask(bind(), execute(), SYNC)


def at_parse_with_describe(c):
    yield c.ask(parse(READ, "s"), describe(b"S", "s"), SYNC)


def at_bind(c):
    """A SELECT is refused when it is bound."""
    yield c.ask(run(READ_BY_TABLE), SYNC)


def at_execute(c):
    """A DELETE is refused when it is executed."""
    yield c.ask(parse(BY_TABLE), bind(), execute(), SYNC)


# Natively a DELETE is refused when it is executed; the gateway decides there by what is bound.
AT_EXECUTE = {
    "directly": ("DELETE FROM orders WHERE id = $1", {"values": [b"1"]}),
    "by parameter": ("INSERT INTO journal SELECT 1, $1", {"values": [b"contraband"]}),
}


def at_execute_alone(c):
    """What is bound is known only now."""
    statement, bound = AT_EXECUTE[sys.argv[3]]
    yield c.ask(run(NOTE), parse(statement), bind(**bound), execute(), run(NOTE), SYNC)
    yield c.ask(run(NOTE), SYNC, parse(statement), bind(**bound), execute(), SYNC, run(NOTE), SYNC, syncs=3)
    c.send(parse(statement), bind(**bound), execute(), FLUSH)
    yield c.until(b"E")
    yield c.ask(SYNC)


def at_execute_in_a_transaction(c):
    statement, bound = AT_EXECUTE[sys.argv[3]]
    yield c.ask(query("BEGIN"))
    yield c.ask(run(NOTE), SYNC)
    yield c.ask(query("SAVEPOINT here"))
    yield c.ask(parse(statement), bind("p", **bound), execute("p"), SYNC)
    yield c.ask(query("SELECT 'too early'"))
    yield c.ask(query("ROLLBACK TO here"))
    yield c.ask(parse(statement), bind(**bound), execute(), run(NOTE), SYNC)
    yield c.ask(query("COMMIT"))


def at_execute_of_a_name(c):
    """The statement stays, and so does what was bound; each Execute is decided again."""
    statement, bound = AT_EXECUTE[sys.argv[3]]
    yield c.ask(parse(statement, "s"), SYNC)
    yield c.ask(bind("", "s", **bound), execute(), SYNC)
    yield c.ask(bind("", "s", **bound), execute(), SYNC)
    yield c.ask(query("BEGIN"))
    yield c.ask(bind("p", "s", **bound), SYNC)
    yield c.ask(execute("p"), SYNC)
    yield c.ask(query("ROLLBACK"))


def in_a_portal(c):
    yield c.ask(parse(READ), bind("p"), describe(b"P", "p"), execute("p", 2), execute("p", 2), close(b"P", "p"), SYNC)


def in_a_cursor(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(query(f"DECLARE k CURSOR FOR {READ}"))
    yield c.ask(query("FETCH 1 FROM k"))
    yield c.ask(query("ROLLBACK"))


def beside_a_suspended_portal(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(parse(ROWS), bind("p"), execute("p", 2), SYNC)
    yield c.ask(query(DENIED))
    yield c.ask(execute("p", 2), SYNC)
    yield c.ask(query("ROLLBACK"))
    yield c.ask(execute("p", 2), SYNC)


def beside_a_suspended_portal_in_a_pipeline(c):
    yield c.ask(parse(ROWS), bind("p"), execute("p", 2), run(DENIED), execute("p"), SYNC)


def beside_a_suspended_portal_with_a_savepoint(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(parse(ROWS), bind("p"), execute("p", 2), SYNC)
    yield c.ask(query("SAVEPOINT here"))
    yield c.ask(run(DENIED), SYNC)
    yield c.ask(query("ROLLBACK TO here"))
    yield c.ask(execute("p"), SYNC)
    yield c.ask(query("COMMIT"))


def copy_in(c):
    yield c.ask(query("COPY vault.ledger FROM STDIN"))


def copy_in_with_data_ahead(c):
    yield c.ask(query("COPY vault.ledger FROM STDIN"), data(b"6\n"), DONE)


def copy_out(c):
    yield c.ask(query("COPY vault.ledger TO STDOUT"))


def copy_out_of_a_query(c):
    yield c.ask(query(f"COPY ({READ}) TO STDOUT"))


def copy_in_extended(c):
    yield c.ask(parse("COPY vault.ledger FROM STDIN"), bind(), execute(), SYNC)


def copy_in_a_transaction(c):
    yield c.ask(query("BEGIN"))
    yield c.ask(query("COPY vault.ledger FROM STDIN"))
    yield c.ask(query("COMMIT"))


def copy_and_delete(c):
    c.send(query(f"COPY journal FROM STDIN; {DENIED}"))
    kind, body = c.message()
    word = c.word(kind, body)
    if kind == b"G":
        c.send(data(COPY), DONE)
    yield f"{word} {c.until(b'Z')}"


def delete_and_copy(c):
    yield c.ask(query(f"{DENIED}; COPY journal FROM STDIN"))


def in_the_middle_of_a_copy(c):
    """No client may say anything else before the data ends: the server closes."""
    c.send(query("COPY journal FROM STDIN"))
    yield c.until(b"G")
    c.send(data(COPY), query(DENIED))
    yield c.until(b"")


def prepared_in_sql(c):
    yield c.ask(query(f"PREPARE s AS {DENIED}"))
    yield c.ask(query("EXECUTE s"))


def prepared_in_sql_in_a_pipeline(c):
    yield c.ask(run(NOTE), run(f"PREPARE s AS {DENIED}"), run(NOTE), SYNC)


def function_call(c):
    """Its number is the last column of the row."""
    c.send(query("SELECT 'shred()'::regprocedure::oid"))
    c.message()
    shred = int(c.message()[1][6:])
    c.until(b"Z")
    yield c.ask(call(shred))
    yield c.ask(query("BEGIN"))
    yield c.ask(call(shred))
    yield c.ask(query("ROLLBACK"))


ORDERS = [
    simple,
    simple_read,
    simple_by_table,
    simple_again,
    two_simple_queries_at_once,
    multi_first,
    multi_middle,
    multi_last,
    multi_with_a_transaction,
    multi_behind_a_commit,
    in_a_transaction,
    multi_in_a_transaction,
    extended_in_a_transaction,
    in_a_failed_transaction,
    with_savepoints,
    savepoints_in_a_pipeline,
    pipelined_first,
    pipelined_middle,
    pipelined_last,
    pipelined_twice,
    pipelined_over_syncs,
    pipelined_every_second,
    pipelined_with_flushes,
    pipelined_by_table,
    pipelined_before_a_query,
    pipelined_behind_an_error,
    at_parse,
    at_parse_flushed,
    at_parse_of_a_name,
    at_parse_of_a_name_in_use,
    at_parse_behind_another,
    at_parse_in_place_of_the_unnamed,
    at_parse_in_place_of_the_unnamed_in_a_pipeline,
    at_parse_in_place_of_the_unnamed_in_a_transaction,
    at_parse_behind_an_error_beside_the_unnamed,
    at_parse_of_a_name_beside_the_unnamed,
    simple_beside_the_unnamed,
    at_execute_beside_the_unnamed,
    at_parse_with_describe,
    at_bind,
    at_execute,
    at_execute_alone,
    at_execute_in_a_transaction,
    at_execute_of_a_name,
    in_a_portal,
    in_a_cursor,
    beside_a_suspended_portal,
    beside_a_suspended_portal_in_a_pipeline,
    beside_a_suspended_portal_with_a_savepoint,
    copy_in,
    copy_in_with_data_ahead,
    copy_out,
    copy_out_of_a_query,
    copy_in_extended,
    copy_in_a_transaction,
    copy_and_delete,
    delete_and_copy,
    in_the_middle_of_a_copy,
    prepared_in_sql,
    prepared_in_sql_in_a_pipeline,
    function_call,
]


def rows():
    """What there is in the tables, to be compared."""
    c = Connection()
    counts = []
    for table in ("journal", "orders"):
        c.send(query(f"SELECT count(*) FROM {table}"))
        while (found := c.message())[0] != b"D":
            pass
        counts.append(int(found[1][6:]))
        c.until(b"Z")
    c.close()
    return counts


for order in ORDERS:
    before = rows()
    connection = Connection()
    seen = list(order(connection))
    if not seen[-1].endswith("closed"):
        seen.append("next " + connection.ask(query("SELECT 'next'")))
        seen.append("next " + connection.ask(run("SELECT 'next'"), SYNC))
    connection.close()
    change = [after - then for after, then in zip(rows(), before)]
    seen.append(f"journal {change[0]:+}, orders {change[1]:+}")
    print(json.dumps({"order": order.__name__, "seen": seen, "messages": connection.messages}), flush=True)
