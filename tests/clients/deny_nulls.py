"""NULL parameters through drivers. usage: deny_nulls.py HOST PORT"""

import asyncio
import sys

import asyncpg
import psycopg

VALUES = "SELECT {0}::text, {1}::text, {2}::int, {3}::bytea"


def with_psycopg():
    conninfo = f"host={sys.argv[1]} port={sys.argv[2]} user=shop_app dbname=shop"
    with psycopg.connect(conninfo) as connection:
        for binary in (False, True):
            kind = "b" if binary else "t"
            statement = VALUES.format(*[f"%{kind}"] * 4)
            row = connection.execute(statement, (None, "", None, b""), binary=binary).fetchone()
            print("psycopg", row)


async def with_asyncpg():
    connection = await asyncpg.connect(host=sys.argv[1], port=int(sys.argv[2]), user="shop_app", database="shop")
    row = await connection.fetchrow(VALUES.format("$1", "$2", "$3", "$4"), None, "", None, b"")
    print("asyncpg", tuple(row))
    await connection.close()


with_psycopg()
asyncio.run(with_asyncpg())
