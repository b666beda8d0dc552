"""Denied statements in every order asyncpg has; one JSON line each. usage: deny_asyncpg.py HOST PORT WAY

Run as a role that lacks the privilege and as an agent whose policy denies it, the lines must be equal.
"""

import asyncio
import json
import sys

import asyncpg

DENIED = "DELETE FROM vault.ledger"
READ = "SELECT n FROM vault.ledger"
NOTE = "INSERT INTO journal VALUES (1, 'noted')"
ROWS = "SELECT n FROM generate_series(1, 5) AS n"
SERVER = {"host": sys.argv[1], "port": int(sys.argv[2]), "user": "shop_clerk", "database": "shop"}


class Seen:
    """What a program that uses asyncpg sees."""

    def __init__(self, connection):
        self.connection, self.words, self.messages = connection, [], []

    async def of(self, what):
        try:
            result = await what
            if isinstance(result, list):
                result = [tuple(row) for row in result]
            self.words.append(f"{result} {self.status()}")
        except asyncpg.PostgresError as error:
            if error.sqlstate == "42501":
                self.messages.append(error.message)
            self.words.append(f"{type(error).__name__} {error.severity} {error.sqlstate} {self.status()}")
        except asyncpg.InterfaceError as error:
            self.words.append(f"{type(error).__name__} {error}")

    def status(self):
        return "in a transaction" if self.connection.is_in_transaction() else "idle"


async def simple(seen):
    await seen.of(seen.connection.execute(DENIED))


async def read(seen):
    await seen.of(seen.connection.execute(READ))


async def multi_first(seen):
    await seen.of(seen.connection.execute(f"{DENIED}; {NOTE}"))


async def multi_middle(seen):
    await seen.of(seen.connection.execute(f"{NOTE}; {DENIED}; {NOTE}"))


async def multi_last(seen):
    await seen.of(seen.connection.execute(f"{NOTE}; {DENIED}"))


async def at_parse(seen):
    await seen.of(seen.connection.fetch(READ))
    await seen.of(seen.connection.fetch(f"{READ} WHERE n = $1", 1))


async def at_parse_of_a_name(seen):
    await seen.of(seen.connection.prepare(READ))
    await seen.of(seen.connection.fetchval("SELECT $1::int", 7))


# Natively a DELETE is refused when it is executed; the gateway decides there by what is bound.
AT_EXECUTE = {
    "directly": ("DELETE FROM orders WHERE id = $1", 1),
    "by parameter": ("INSERT INTO journal SELECT 1, $1", "contraband"),
}


async def at_execute(seen):
    await seen.of(seen.connection.fetch(*AT_EXECUTE[sys.argv[3]]))
    transaction = seen.connection.transaction()
    await transaction.start()
    await seen.of(seen.connection.execute(NOTE))
    await seen.of(seen.connection.execute(*AT_EXECUTE[sys.argv[3]]))
    await seen.of(seen.connection.fetch("SELECT 'too early'"))
    await seen.of(transaction.rollback())


async def in_a_transaction(seen):
    async with seen.connection.transaction():
        await seen.of(seen.connection.execute(NOTE))
    transaction = seen.connection.transaction()
    await transaction.start()
    await seen.of(seen.connection.execute(NOTE))
    await seen.of(seen.connection.fetch(READ))
    await seen.of(seen.connection.fetch("SELECT 'too early'"))
    await seen.of(transaction.rollback())


async def simple_in_a_transaction(seen):
    transaction = seen.connection.transaction()
    await transaction.start()
    await seen.of(seen.connection.execute(NOTE))
    await seen.of(seen.connection.execute(DENIED))
    await seen.of(transaction.commit())


async def with_savepoints(seen):
    async def inner():
        async with seen.connection.transaction():
            await seen.connection.execute(NOTE)
            await seen.connection.fetch(READ)

    async with seen.connection.transaction():
        await seen.of(seen.connection.execute(NOTE))
        await seen.of(inner())
        await seen.of(seen.connection.execute(NOTE))


async def executemany(seen):
    """asyncpg's only pipeline: many Binds and Executes behind one Parse."""
    await seen.of(seen.connection.executemany(f"{DENIED} WHERE n = $1", [(1,), (2,), (3,)]))


async def in_a_portal(seen):
    async def fetch():
        async with seen.connection.transaction():
            cursor = await seen.connection.cursor(READ)
            return await cursor.fetch(2)

    await seen.of(fetch())


async def beside_a_suspended_portal(seen):
    transaction = seen.connection.transaction()
    await transaction.start()
    cursor = await seen.connection.cursor(ROWS)
    await seen.of(cursor.fetch(2))
    await seen.of(seen.connection.fetch(READ))
    await seen.of(cursor.fetch(2))
    await seen.of(transaction.rollback())


async def beside_a_suspended_portal_with_a_savepoint(seen):
    async def inner():
        async with seen.connection.transaction():
            await seen.connection.fetch(READ)

    async with seen.connection.transaction():
        cursor = await seen.connection.cursor(ROWS)
        await seen.of(cursor.fetch(2))
        await seen.of(inner())
        await seen.of(cursor.fetch(9))


async def copy_in(seen):
    copy = seen.connection.copy_records_to_table("ledger", schema_name="vault", records=[(6,), (7,)])
    await seen.of(copy)


async def copy_out(seen):
    await seen.of(seen.connection.copy_from_table("ledger", schema_name="vault", output=lambda rows: None))


async def copy_out_of_a_query(seen):
    await seen.of(seen.connection.copy_from_query(READ, output=lambda rows: None))


async def copy_in_a_transaction(seen):
    transaction = seen.connection.transaction()
    await transaction.start()
    await seen.of(seen.connection.execute(NOTE))
    copy = seen.connection.copy_records_to_table("ledger", schema_name="vault", records=[(6,)])
    await seen.of(copy)
    await seen.of(transaction.rollback())


async def prepared_in_sql(seen):
    await seen.of(seen.connection.execute(f"PREPARE s AS {DENIED}"))
    await seen.of(seen.connection.execute("EXECUTE s"))


ORDERS = [
    simple,
    read,
    multi_first,
    multi_middle,
    multi_last,
    at_parse,
    at_parse_of_a_name,
    at_execute,
    in_a_transaction,
    simple_in_a_transaction,
    with_savepoints,
    executemany,
    in_a_portal,
    beside_a_suspended_portal,
    beside_a_suspended_portal_with_a_savepoint,
    copy_in,
    copy_out,
    copy_out_of_a_query,
    copy_in_a_transaction,
    prepared_in_sql,
]


async def rows():
    connection = await asyncpg.connect(**SERVER)
    counts = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("journal", "orders")]
    await connection.close()
    return counts


async def main():
    for order in ORDERS:
        before = await rows()
        connection = await asyncpg.connect(**SERVER)
        seen = Seen(connection)
        await order(seen)
        await seen.of(connection.execute("SELECT 'next'"))
        await seen.of(connection.fetch("SELECT $1::text", "next"))
        await connection.close()
        change = [after - then for after, then in zip(await rows(), before)]
        seen.words.append(f"journal {change[0]:+}, orders {change[1]:+}")
        print(json.dumps({"order": order.__name__, "seen": seen.words, "messages": seen.messages}), flush=True)


asyncio.run(main())
