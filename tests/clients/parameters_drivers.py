"""Parameters as drivers send them. usage: parameters_drivers.py HOST PORT CONNINFO"""

import asyncio
import datetime
import decimal
import sys
import uuid

import asyncpg
import psycopg

VALUES = (
    ("int4", 42),
    ("text", "ä€"),
    ("bool", True),
    ("float8", 2.5),
    ("numeric", decimal.Decimal("12.50")),
    ("date", datetime.date(2024, 2, 29)),
    ("timestamptz", datetime.datetime(2024, 2, 29, 13, 14, 15, tzinfo=datetime.timezone.utc)),
    ("uuid", uuid.UUID("c2f0e1a4-0000-4000-8000-000000000001")),
    ("bytea", b"\x00\xff"),
    ("int4[]", [1, 2]),
)
ASK = "SELECT " + ", ".join(f"${number}::{name}" for number, (name, _) in enumerate(VALUES, 1))


def with_psycopg(conninfo):
    values = [value for _, value in VALUES]
    query = "SELECT " + ", ".join(f"%b::{name}" for name, _ in VALUES)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.cursor(binary=True).execute(query, values).fetchone()


async def with_asyncpg(host, port):
    values = [value for _, value in VALUES]
    connection = await asyncpg.connect(host=host, port=port, user="shop_app", database="shop")
    await connection.fetchrow(ASK, *values)
    await connection.close()


asyncio.run(with_asyncpg(sys.argv[1], int(sys.argv[2])))
with_psycopg(sys.argv[3])
