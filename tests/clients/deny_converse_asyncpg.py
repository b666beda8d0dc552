"""A conversation of asyncpg's: binary, described first, portals. usage: deny_converse_asyncpg.py HOST PORT"""

import asyncio
import io
import sys

import asyncpg


async def main():
    connection = await asyncpg.connect(
        host=sys.argv[1], port=int(sys.argv[2]), user="shop_clerk", database="shop", ssl=False
    )
    await connection.fetch("SELECT id, title, stock FROM products WHERE id > $1 ORDER BY id", 1)
    statement = await connection.prepare("SELECT $1::int + n FROM generate_series(1, 3) AS n")
    for number in (1, 2, None):
        await statement.fetch(number)
    await connection.fetch("SELECT * FROM accounts WHERE id > $1 ORDER BY id", 1)
    await connection.add_listener("cut", lambda *notification: None)
    await connection.execute("NOTIFY cut, 'heard'")
    for form in ("text", "csv", "binary"):
        await connection.copy_from_table("accounts", output=io.BytesIO(), format=form)
    try:
        await connection.fetch("SELECT n FROM vault.ledger WHERE n = $1", 1)
    except asyncpg.InsufficientPrivilegeError:
        pass
    transaction = connection.transaction()
    await transaction.start()
    await connection.executemany("INSERT INTO journal VALUES ($1, $2)", [(1, "one"), (2, None), (3, "")])
    cursor = await connection.cursor("SELECT n FROM generate_series(1, 5) AS n")
    await cursor.fetch(2)
    await cursor.fetch(9)
    cursor = await connection.cursor("SELECT pan, balance FROM accounts ORDER BY id")
    await cursor.fetch(1)
    await cursor.fetch(9)
    await connection.copy_records_to_table("journal", records=[(4, "copied")])
    await transaction.rollback()
    await connection.close()


asyncio.run(main())
