"""What an asyncpg program sees, printed. usage: asyncpg_rows.py HOST PORT [PASSWORD]"""

import asyncio
import datetime
import decimal
import sys

import asyncpg

TYPES = """
    SELECT 1::int2 AS a, 2::int4 AS b, 3::int8 AS c, 1.5::float4 AS d, 2.25::float8 AS e, 12345.6789::numeric AS f,
           true AS g, NULL::int AS h, 'text'::text AS i, '\\x00ff10'::bytea AS j, '2024-02-29'::date AS k,
           '2024-02-29 13:14:15+00'::timestamptz AS l, '1 day 2 hours'::interval AS m, ARRAY[1, 2, NULL] AS n,
           '{"a": [1, 2]}'::json AS o, 'c2f0e1a4-0000-4000-8000-000000000001'::uuid AS p, '10.0.0.0/8'::cidr AS q,
           int4range(1, 5) AS r, ROW(1, 'x') AS s
"""


def show(name, value):
    print(f"{name}: {value!r}")


async def main():
    connection = await asyncpg.connect(
        host=sys.argv[1],
        port=int(sys.argv[2]),
        user="shop_app",
        database="shop",
        password=sys.argv[3] if len(sys.argv) > 3 else None,
    )
    show("server", connection.get_server_version())
    show("types", await connection.fetchrow(TYPES))
    show("rows", await connection.fetch("SELECT id, title, price, stock FROM products WHERE price > $1 ORDER BY id", 5))
    statement = await connection.prepare("SELECT title, placed_at FROM orders o JOIN products p ON p.id = o.product_id WHERE o.id = $1")
    show("parameters", statement.get_parameters())
    show("attributes", statement.get_attributes())
    for order in range(1, 6):
        show("prepared", await statement.fetchrow(order))
    values = (datetime.date(2024, 2, 29), decimal.Decimal("1.10"), b"\x00\xff", [1, 2, 3], None, "ä€😀")
    show("values", await connection.fetchrow("SELECT $1::date, $2::numeric, $3::bytea, $4::int[], $5::text, $6::text", *values))
    # A composite type makes asyncpg look it up in the catalogue.
    show("introspection", await connection.fetchval("SELECT p FROM products AS p WHERE id = 1"))
    async with connection.transaction():
        show("cursor", [row["n"] async for row in connection.cursor("SELECT n FROM generate_series(1, 120) AS n")])
    show("simple", await connection.execute("SELECT 1; SELECT 2"))
    for name, query in (("division", "SELECT 1 / 0"), ("column", "SELECT no_such_column FROM products"), ("cast", "SELECT 'x'::int")):
        try:
            async with connection.transaction():
                await connection.fetch(query)
        except asyncpg.PostgresError as error:
            show(name, (error.sqlstate, error.message, error.position))
    show("usable", await connection.fetchval("SELECT 42"))
    await connection.close()


asyncio.run(main())
