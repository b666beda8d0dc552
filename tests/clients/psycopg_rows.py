"""What a psycopg 3 program sees, printed. usage: psycopg_rows.py CONNINFO"""

import datetime
import decimal
import sys

import psycopg
from psycopg.rows import dict_row

TYPES = """
    SELECT 1::int2, 2::int4, 3::int8, 1.5::float4, 2.25::float8, 12345.6789::numeric, true, NULL::int,
           'text', 'varchar'::varchar(10), '\\x00ff10'::bytea, '2024-02-29'::date, '13:14:15.5'::time,
           '2024-02-29 13:14:15+00'::timestamptz, '1 day 2 hours'::interval, ARRAY[1, 2, NULL], ARRAY['a', 'b'],
           '{"a": [1, 2]}'::json, '{"b": null}'::jsonb, 'c2f0e1a4-0000-4000-8000-000000000001'::uuid,
           '10.0.0.0/8'::inet, int4range(1, 5)
"""


def show(name, value):
    print(f"{name}: {value!r}")


def main():
    with psycopg.connect(sys.argv[1]) as connection:
        show("server", connection.info.server_version)
        show("parameters", {key: connection.info.parameter_status(key) for key in ("TimeZone", "server_encoding")})
        for binary in (False, True):
            with connection.cursor(binary=binary) as cursor:
                show("types", cursor.execute(TYPES).fetchone())
                cursor.execute("SELECT id, title, price, stock FROM products WHERE price > %s ORDER BY id", (5,))
                show("columns", cursor.description)
                show("rows", cursor.fetchall())
                show("status", cursor.statusmessage)
        with connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute("SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer_id ORDER BY o.id LIMIT 5")
            show("dicts", cursor.fetchall())
        for stock in range(8):
            row = connection.execute("SELECT count(*) FROM products WHERE stock > %s", (stock * 20,), prepare=True).fetchone()
            show("prepared", row)
        values = (datetime.date(2024, 2, 29), decimal.Decimal("1.10"), b"\x00\xff", [1, 2, 3], None, "ä€😀")
        show("values", connection.execute("SELECT %s::date, %s::numeric, %s::bytea, %s::int[], %s::text, %s::text", values).fetchone())
        connection.commit()
        with connection.pipeline():
            cursors = [connection.execute("SELECT title FROM products WHERE id = %s", (n,)) for n in range(1, 5)]
            for cursor in cursors:
                show("pipeline", cursor.fetchall())
        connection.commit()
        with connection.transaction():
            with connection.cursor(name="by_portal") as cursor:
                cursor.execute("SELECT n FROM generate_series(1, 25) AS n")
                cursor.itersize = 10
                show("portal", [row[0] for row in cursor])
        for name, statement in (
            ("division", "SELECT 1 / 0"),
            ("column", "SELECT no_such_column FROM products"),
            ("cast", "SELECT 'x'::int"),
        ):
            try:
                with connection.transaction():
                    connection.execute(statement)
            except psycopg.Error as error:
                show(name, (error.sqlstate, error.diag.severity, error.diag.message_primary, error.diag.statement_position))
        show("usable", connection.execute("SELECT 42").fetchone())


main()
