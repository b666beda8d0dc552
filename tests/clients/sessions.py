"""A hundred sessions at once. usage: sessions.py HOST PORT

All are open before the first works; each has a transaction, a prepared statement and a channel of its own, so that
whatever got into the wrong session would be seen.
"""

import asyncio
import sys

import asyncpg

COUNT = 100
ROUNDS = 5


async def connect(number):
    return await asyncpg.connect(
        host=sys.argv[1], port=int(sys.argv[2]), user="postgres", database="postgres", timeout=300, server_settings={"application_name": f"session {number}"}
    )


async def work(connection, number):
    heard = []
    await connection.add_listener(f"channel_{number}", lambda _, pid, channel, payload: heard.append(payload))
    await connection.execute(f"CREATE TEMP TABLE own AS SELECT {number} AS number")
    statement = await connection.prepare("SELECT number * $1::int + $2::int, current_setting('application_name') FROM own")
    seen = []
    for turn in range(ROUNDS):
        async with connection.transaction():
            seen.append(tuple(await statement.fetchrow(1000, turn)))
            await connection.execute(f"NOTIFY channel_{number}, '{number}-{turn}'")
    await connection.fetchval("SELECT 1")
    assert seen == [(number * 1000 + turn, f"session {number}") for turn in range(ROUNDS)], seen
    assert heard == [f"{number}-{turn}" for turn in range(ROUNDS)], heard
    return len(seen)


async def main():
    connections = await asyncio.gather(*(connect(number) for number in range(COUNT)))
    pids = {connection.get_server_pid() for connection in connections}
    print(f"ok sessions open at once: {len(connections)}, {len(pids)} backends")
    known = await connections[0].fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'session %'")
    print(f"ok sessions the server knows: {known}")
    done = await asyncio.gather(*(work(connection, number) for number, connection in enumerate(connections)))
    print(f"ok transactions, each in its own session: {sum(done)}")
    await asyncio.gather(*(connection.close() for connection in connections))
    print("ok all closed: yes")


asyncio.run(main())
