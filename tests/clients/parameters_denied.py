"""What a policy about parameters does to each driver; one line each. usage: parameters_denied.py HOST PORT CONNINFO"""

import asyncio
import struct
import sys

import asyncpg
import psycopg
from parameters import Connection, message, text

UPDATE = "UPDATE products SET stock = stock WHERE title = $1 AND stock > $2"


def bind_and_run(title, stock, parameter_format):
    values = struct.pack("!i", len(title)) + title + struct.pack("!i", len(stock)) + stock
    return (
        message(b"B", b"\0", text("s"), struct.pack("!hhh", 1, parameter_format, 2), values, b"\0\0")
        + message(b"E", b"\0", struct.pack("!i", 0))
        + message(b"S")
    )


def kinds(answer):
    shown = []
    for kind, body in answer:
        shown.append(kind.decode() + (body.decode() if kind == b"Z" else ""))
        if kind == b"E":
            shown.append("42501" if b"\0C42501\0" in body and b"no-teapots" in body else f"{body}")
    return " ".join(shown)


def raw(host, port):
    connection = Connection(host, port)
    prepare = message(b"P", text("s"), text(UPDATE), struct.pack("!hII", 2, 25, 23)) + message(b"S")
    print("prepare:", kinds(connection.ask(prepare)))
    four = struct.pack("!i", 4)
    print("allowed:", kinds(connection.ask(bind_and_run(b"mug", b"4", 0))))
    print("by text:", kinds(connection.ask(bind_and_run(b"teapot", b"4", 0))))
    print("in binary:", kinds(connection.ask(bind_and_run(b"teapot", four, 1))))
    print("by number:", kinds(connection.ask(bind_and_run(b"mug", struct.pack("!i", 666), 1))))
    print("allowed again:", kinds(connection.ask(bind_and_run(b"mug", four, 1))))
    connection.ask(message(b"Q", text("BEGIN")))
    print("in a transaction:", kinds(connection.ask(bind_and_run(b"teapot", four, 1))))
    connection.ask(message(b"Q", text("ROLLBACK")))
    print("after it:", kinds(connection.ask(bind_and_run(b"mug", four, 1))))


def with_psycopg(conninfo):
    update = UPDATE.replace("$1", "%s").replace("$2", "%s")
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for title in ("mug", "teapot", "mug"):
            try:
                print("psycopg:", title, connection.execute(update, (title, 4), prepare=True).statusmessage)
            except psycopg.errors.InsufficientPrivilege as error:
                print("psycopg:", title, "refused", error.sqlstate)


async def with_asyncpg(host, port):
    connection = await asyncpg.connect(host=host, port=port, user="shop_app", database="shop")
    for title, stock in (("mug", 4), ("teapot", 4), ("mug", 666), ("mug", 4)):
        try:
            print("asyncpg:", title, stock, await connection.execute(UPDATE, title, stock))
        except asyncpg.InsufficientPrivilegeError as error:
            print("asyncpg:", title, stock, "refused", error.sqlstate)
    await connection.close()


raw(sys.argv[1], int(sys.argv[2]))
with_psycopg(sys.argv[3])
asyncio.run(with_asyncpg(sys.argv[1], int(sys.argv[2])))
