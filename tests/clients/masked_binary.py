"""Masked columns in text and in binary. usage: masked_binary.py HOST PORT CONNINFO

Prints both forms of every column of `vault` and `safe`, and what drivers make of a masked column.
"""

import asyncio
import struct
import sys

import asyncpg
import psycopg
from parameters import Connection, message, run, text


def values(row):
    row = row[2:]
    while row:
        length = struct.unpack("!i", row[:4])[0]
        row = row[4:]
        yield None if length < 0 else row[:length].decode()
        row = row[max(length, 0) :]


def rows(answer):
    return [list(values(body)) for kind, body in answer if kind == b"D"]


def names(answer):
    fields = next(body for kind, body in answer if kind == b"T")[2:]
    while fields:
        name, fields = fields.split(b"\0", 1)
        yield name.decode()
        fields = fields[18:]


def raw(host, port):
    connection = Connection(host, port)
    for table in ("vault", "safe"):
        select = f"SELECT * FROM {table}"
        answer = connection.ask(message(b"Q", text(select)))
        [in_text] = rows(answer)
        [in_binary] = rows(connection.ask(run(select, result_format=1)))
        for name, *forms in zip(names(answer), in_text, in_binary):
            print(f"{table}.{name}: {forms[0]!r} {forms[1]!r}")
    connection.ask(message(b"Q", text("BEGIN; DECLARE c BINARY CURSOR FOR SELECT card_number FROM customers ORDER BY id")))
    print("fetch:", rows(connection.ask(message(b"Q", text("FETCH 1 FROM c")))))
    print("fetch in binary:", rows(connection.ask(run("FETCH 1 FROM c", result_format=1))))
    print("fetch in text:", rows(connection.ask(run("FETCH 1 FROM c"))))
    # The cursor is a portal of that name.
    portal = message(b"E", text("c"), struct.pack("!i", 1)) + message(b"S")
    print("as a portal:", rows(connection.ask(portal)))
    connection.ask(message(b"Q", text("ROLLBACK")))
    # A portal in pieces, each behind a description of its own.
    bind = message(b"B", text("p"), b"\0", struct.pack("!hhhh", 0, 0, 1, 1))
    pieces = message(b"E", text("p"), struct.pack("!i", 2)) * 3
    parse = message(b"P", b"\0", text("SELECT card_number FROM customers ORDER BY id"), b"\0\0")
    print("in pieces:", [row[0] for row in rows(connection.ask(parse + bind + pieces + message(b"S")))])


def with_psycopg(conninfo):
    select = "SELECT card_number, email FROM customers ORDER BY id"
    with psycopg.connect(conninfo) as connection:
        for binary in (False, True):
            print("psycopg:", connection.cursor(binary=binary).execute(select).fetchall())
        with connection.cursor("c", binary=True) as cursor:
            print("psycopg:", cursor.execute(select).fetchall())


async def with_asyncpg(host, port):
    connection = await asyncpg.connect(host=host, port=port, user="shop_app", database="shop")
    select = "SELECT card_number, email FROM customers WHERE id > $1 ORDER BY id"
    print("asyncpg:", [tuple(row) for row in await connection.fetch(select, 0)])
    async with connection.transaction():
        print("asyncpg:", [tuple(row) async for row in connection.cursor(select, 0, prefetch=2)])
    await connection.close()


raw(sys.argv[1], int(sys.argv[2]))
with_psycopg(sys.argv[3])
asyncio.run(with_asyncpg(sys.argv[1], int(sys.argv[2])))
