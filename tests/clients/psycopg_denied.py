"""Denied statements in every mode of psycopg 3; one line each. usage: psycopg_denied.py CONNINFO"""

import sys

import psycopg

DENIED = "DELETE FROM orders"


def check(mode, connection, denied):
    try:
        denied()
    except psycopg.errors.InsufficientPrivilege as error:
        complete = error.diag.message_detail and error.diag.message_hint
        verdict = f"refused {error.sqlstate}" if complete else "refused without advice"
    else:
        verdict = "NOT REFUSED"
    if not connection.autocommit:
        connection.rollback()
    usable = connection.execute("SELECT 42").fetchone() == (42,)
    connection.rollback()
    print(f"{mode}: {verdict}, and {'usable' if usable else 'UNUSABLE'}")


def in_transaction(connection):
    connection.execute("SELECT 1")
    try:
        connection.execute(DENIED)
    finally:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR


def in_savepoint(connection):
    with connection.transaction():
        try:
            with connection.transaction():
                connection.execute(DENIED)
        finally:
            assert connection.execute("SELECT 7").fetchone() == (7,)


def with_server_cursor(connection):
    with connection.cursor(name="held") as cursor:
        cursor.execute("DELETE FROM orders RETURNING *")


def in_pipeline(connection):
    with connection.pipeline() as pipeline:
        first = connection.execute("SELECT 1")
        connection.execute(DENIED)
        connection.execute("SELECT 2")
        pipeline.sync()
        assert first.fetchone() == (1,)


def with_many(connection):
    with connection.cursor() as cursor:
        cursor.executemany("DELETE FROM orders WHERE id = %s", [(1,), (2,)])


def with_copy(connection):
    with connection.cursor() as cursor, cursor.copy("COPY orders FROM STDIN") as copy:
        copy.write(b"")


def main():
    with psycopg.connect(sys.argv[1], autocommit=True) as connection:
        check("autocommit", connection, lambda: connection.execute(DENIED))
    with psycopg.connect(sys.argv[1]) as connection:
        check("transaction", connection, lambda: in_transaction(connection))
        check("savepoint", connection, lambda: in_savepoint(connection))
        check("prepared", connection, lambda: connection.execute("DELETE FROM orders WHERE id = %s", (1,), prepare=True))
        check("server cursor", connection, lambda: with_server_cursor(connection))
        check("pipeline", connection, lambda: in_pipeline(connection))
        check("executemany", connection, lambda: with_many(connection))
        check("copy", connection, lambda: with_copy(connection))


main()
