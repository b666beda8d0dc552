"""A conversation of psycopg's, in pipelines and with cursors. usage: deny_converse_psycopg.py CONNINFO"""

import sys

import psycopg

NOTE = "INSERT INTO journal VALUES (%s, %s)"


def refused(what):
    try:
        what()
    except psycopg.errors.InsufficientPrivilege:
        return
    raise SystemExit("it was not refused")


with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    with connection.pipeline():
        for number in range(3):
            connection.execute("SELECT id, title, stock FROM products WHERE id = %s", (number,), prepare=True)
        connection.execute("SELECT %s::text, %s::int, %b::text", (None, 7, "binary"))
    connection.execute("SELECT id, card_number FROM customers WHERE id < %s ORDER BY id", (3,))

    connection.cursor(binary=True).execute("SELECT * FROM accounts WHERE id < %s ORDER BY id", (3,))
    for form in ("text", "binary"):
        with connection.cursor().copy(f"COPY accounts TO STDOUT (FORMAT {form})") as copy:
            list(copy)
    connection.execute("LISTEN cut")
    connection.execute("NOTIFY cut, 'heard'")

    def in_a_pipeline():
        with connection.pipeline():
            connection.execute(NOTE, (1, "undone"))
            connection.execute("DELETE FROM vault.ledger")
            connection.execute(NOTE, (2, "skipped"))

    refused(in_a_pipeline)
    with connection.transaction(force_rollback=True):
        connection.cursor().executemany(NOTE, [(1, "one"), (2, None), (3, "")])
        refused_inside = connection.transaction()

        def inside():
            with refused_inside:
                connection.execute("DELETE FROM vault.ledger WHERE n = %s", (1,))

        refused(inside)
        with connection.cursor().copy("COPY journal FROM STDIN") as copy:
            copy.write_row((4, "copied"))
            copy.write_row((5, None))
        with connection.cursor().copy("COPY journal FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(("int4", "text"))
            copy.write_row((6, "binary"))
        with connection.cursor(name="held") as cursor:
            cursor.execute("SELECT n FROM generate_series(1, 5) AS n")
            cursor.fetchmany(2)
            cursor.fetchall()
        with connection.cursor(name="hidden", binary=True) as cursor:
            cursor.execute("SELECT pan, born FROM accounts ORDER BY id")
            cursor.fetchmany(2)
            cursor.fetchall()
