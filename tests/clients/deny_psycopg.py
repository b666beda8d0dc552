"""Denied statements in every order psycopg 3 has; one JSON line each. usage: deny_psycopg.py HOST PORT WAY

Run as a role that lacks the privilege and as an agent whose policy denies it, the lines must be equal.
"""

import json
import sys

import psycopg

DENIED = "DELETE FROM vault.ledger"
READ = "SELECT n FROM vault.ledger"
NOTE = "INSERT INTO journal VALUES (1, 'noted')"
ROWS = "SELECT n FROM generate_series(1, 5) AS n"
CONNINFO = f"host={sys.argv[1]} port={sys.argv[2]} user=shop_clerk dbname=shop"


class Seen:
    """What a program that uses psycopg sees."""

    def __init__(self, connection):
        self.connection, self.words, self.messages = connection, [], []

    def of(self, what):
        try:
            self.words.append(f"{what()} {self.status()}")
        except psycopg.Error as error:
            if error.sqlstate == "42501":
                self.messages.append(error.diag.message_primary)
            name = f"{type(error).__name__} {error.diag.severity_nonlocalized} {error.sqlstate}"
            self.words.append(f"{name} {self.status()}")

    def status(self):
        return self.connection.info.transaction_status.name

    def run(self, sql, **options):
        self.of(lambda: self.fetched(self.connection.execute(sql, **options)))

    @staticmethod
    def fetched(cursor):
        return cursor.fetchall() if cursor.description else cursor.statusmessage


def simple(seen):
    seen.run(DENIED)


def read(seen):
    seen.run(READ)


def multi_first(seen):
    seen.run(f"{DENIED}; {NOTE}")


def multi_middle(seen):
    seen.run(f"{NOTE}; {DENIED}; {NOTE}")


def multi_last(seen):
    seen.run(f"{NOTE}; {DENIED}")


def at_parse(seen):
    seen.run(f"{DENIED} WHERE n = %s", params=(1,))


def at_parse_of_a_name(seen):
    seen.run(f"{DENIED} WHERE n = %s", params=(1,), prepare=True)
    seen.run(f"{DENIED} WHERE n = %s", params=(1,), prepare=True)


def with_binary_results(seen):
    seen.run(f"{READ} WHERE n = %s", params=(1,), binary=True)


# Natively a DELETE is refused when it is executed; the gateway decides there by what is bound.
AT_EXECUTE = {
    "directly": ("DELETE FROM orders WHERE id = %s", 1),
    "by parameter": ("INSERT INTO journal SELECT 1, %s", "contraband"),
}


def at_execute(seen):
    statement, value = AT_EXECUTE[sys.argv[3]]
    seen.run(statement, params=(value,), binary=True)
    with seen.connection.transaction(force_rollback=True):
        seen.run(statement, params=(value,), binary=True, prepare=True)
        seen.run("SELECT 'too early'")


def in_a_transaction(seen):
    seen.connection.autocommit = False
    seen.run(NOTE)
    seen.run(DENIED)
    seen.run("SELECT 'too early'")
    seen.of(seen.connection.rollback)
    seen.run("SELECT 'after'")
    seen.of(seen.connection.commit)


def in_a_transaction_that_commits(seen):
    seen.connection.autocommit = False
    seen.run(NOTE)
    seen.run(DENIED)
    seen.of(seen.connection.commit)


def with_savepoints(seen):
    def inner():
        with seen.connection.transaction():
            seen.connection.execute(NOTE)
            seen.connection.execute(DENIED)

    with seen.connection.transaction():
        seen.run(NOTE)
        seen.of(inner)
        seen.run(NOTE)


def pipelined(seen, *statements):
    """The error may come while the next statement is sent, which is not sent then, or at the end."""
    cursors = [seen.connection.cursor() for _ in statements]

    def send():
        with seen.connection.pipeline():
            for cursor, statement in zip(cursors, statements):
                cursor.execute(statement)

    seen.of(send)
    for cursor in cursors:
        seen.of(lambda: cursor.statusmessage)


def pipelined_first(seen):
    pipelined(seen, DENIED, NOTE, NOTE)


def pipelined_middle(seen):
    pipelined(seen, NOTE, DENIED, NOTE)


def pipelined_last(seen):
    pipelined(seen, NOTE, NOTE, DENIED)


def pipelined_over_syncs(seen):
    with seen.connection.pipeline() as pipeline:
        for statement in (NOTE, DENIED, NOTE):
            cursor = seen.connection.cursor()

            def one():
                cursor.execute(statement)
                pipeline.sync()
                return seen.fetched(cursor)

            seen.of(one)


def pipelined_in_a_transaction(seen):
    def send():
        with seen.connection.transaction():
            seen.connection.execute(NOTE)
            seen.connection.execute(DENIED)

    with seen.connection.pipeline():
        seen.of(send)


def executemany(seen):
    with seen.connection.cursor() as cursor:
        seen.of(lambda: cursor.executemany(f"{DENIED} WHERE n = %s", [(1,), (2,), (3,)]))


def in_a_portal(seen):
    def declare():
        with seen.connection.transaction(), seen.connection.cursor(name="k") as cursor:
            cursor.execute(READ)
            return cursor.fetchmany(2)

    seen.of(declare)


def beside_a_suspended_portal(seen):
    seen.connection.autocommit = False
    cursor = seen.connection.cursor(name="k")
    cursor.execute(ROWS)
    seen.of(lambda: cursor.fetchmany(2))
    seen.run(DENIED)
    seen.of(lambda: cursor.fetchmany(2))
    seen.of(seen.connection.rollback)


def in_a_stream(seen):
    with seen.connection.cursor() as cursor:
        seen.of(lambda: list(cursor.stream(READ)))


def copied(seen, sql, rows=b""):
    def copy():
        with seen.connection.cursor() as cursor, cursor.copy(sql) as copy:
            if "STDIN" in sql:
                copy.write(rows)
            else:
                return [bytes(row) for row in copy]

    seen.of(copy)


def copy_in(seen):
    copied(seen, "COPY vault.ledger FROM STDIN", b"6\n")


def copy_out(seen):
    copied(seen, "COPY vault.ledger TO STDOUT")


def copy_in_a_transaction(seen):
    seen.connection.autocommit = False
    seen.run(NOTE)
    copied(seen, "COPY vault.ledger FROM STDIN", b"6\n")
    seen.run("SELECT 'too early'")
    seen.of(seen.connection.rollback)


def copy_and_delete(seen):
    """psycopg takes one statement for a copy; below it is libpq, which takes both."""
    pgconn = seen.connection.pgconn

    def copy():
        result = pgconn.exec_(f"COPY journal FROM STDIN; {DENIED}".encode())
        if result.status == psycopg.pq.ExecStatus.COPY_IN:
            pgconn.put_copy_data(b"1\tcopied\n")
            pgconn.put_copy_end()
            while next_result := pgconn.get_result():
                result = next_result
        if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
        return result.status.name

    seen.of(copy)


def prepared_in_sql(seen):
    seen.run(f"PREPARE s AS {DENIED}")
    seen.run("EXECUTE s")


ORDERS = [
    simple,
    read,
    multi_first,
    multi_middle,
    multi_last,
    at_parse,
    at_parse_of_a_name,
    with_binary_results,
    at_execute,
    in_a_transaction,
    in_a_transaction_that_commits,
    with_savepoints,
    pipelined_first,
    pipelined_middle,
    pipelined_last,
    pipelined_over_syncs,
    pipelined_in_a_transaction,
    executemany,
    in_a_portal,
    beside_a_suspended_portal,
    in_a_stream,
    copy_in,
    copy_out,
    copy_in_a_transaction,
    copy_and_delete,
    prepared_in_sql,
]


def rows():
    with psycopg.connect(CONNINFO) as connection:
        return connection.execute("SELECT (SELECT count(*) FROM journal), (SELECT count(*) FROM orders)").fetchone()


for order in ORDERS:
    before = rows()
    with psycopg.connect(CONNINFO, autocommit=True) as connection:
        seen = Seen(connection)
        order(seen)
        seen.run("SELECT 'next'")
        seen.run("SELECT %s::text", params=("next",))
    change = [after - then for after, then in zip(rows(), before)]
    seen.words.append(f"journal {change[0]:+}, orders {change[1]:+}")
    print(json.dumps({"order": order.__name__, "seen": seen.words, "messages": seen.messages}), flush=True)
