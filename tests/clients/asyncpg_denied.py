"""Denied statements in every mode of asyncpg; one line each. usage: asyncpg_denied.py HOST PORT"""

import asyncio
import sys

import asyncpg

DENIED = "DELETE FROM orders"


async def check(mode, connection, denied):
    try:
        await denied
    except asyncpg.InsufficientPrivilegeError as error:
        verdict = f"refused {error.sqlstate}" if error.detail and error.hint else "refused without advice"
    else:
        verdict = "NOT REFUSED"
    usable = await connection.fetchval("SELECT 42") == 42
    print(f"{mode}: {verdict}, and {'usable' if usable else 'UNUSABLE'}")


async def in_transaction(connection):
    async with connection.transaction():
        await connection.fetchval("SELECT 1")
        await connection.execute(DENIED)


async def main():
    connection = await asyncpg.connect(host=sys.argv[1], port=int(sys.argv[2]), user="shop_app", database="shop")
    await check("simple", connection, connection.execute(DENIED))
    await check("fetch", connection, connection.fetch("DELETE FROM orders WHERE id = $1", 1))
    await check("transaction", connection, in_transaction(connection))
    await check("prepare", connection, connection.prepare("DELETE FROM orders RETURNING id"))
    await connection.close()


asyncio.run(main())
