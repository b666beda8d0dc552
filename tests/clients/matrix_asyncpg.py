"""What an asyncpg program sees of every kind of thing that it can ask for: one line for each.

usage: matrix_asyncpg.py HOST PORT, as the server's superuser in a database of its own. Prints `ok NAME: VALUE` or
`FAILED NAME: ERROR`; nothing in it depends on when or where it ran. asyncpg never asks for text: every value is
binary, both ways.
"""

import asyncio
import datetime
import decimal
import io
import ipaddress
import json
import sys
import uuid

import asyncpg

# Each a name, a function, and whether it leaves the connection as it found it.
CHECKS = []

SETUP = """
    CREATE SCHEMA matrix_asyncpg; SET search_path = matrix_asyncpg;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TYPE pair AS (number int, word text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE item (id int PRIMARY KEY, word text NOT NULL, price numeric(8, 2) CHECK (price >= 0), seen timestamptz);
    INSERT INTO item SELECT n, 'word ' || n, n * 1.5, '2024-02-29 12:00:00+00'::timestamptz + n * interval '1 hour'
        FROM generate_series(1, 50) AS n;
    CREATE TABLE part (id int PRIMARY KEY, item int REFERENCES item);
    CREATE FUNCTION tell() RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN RAISE NOTICE 'told %', 7 USING DETAIL = 'why', HINT = 'how'; RAISE WARNING 'and told'; END $$;
"""


SERVER = {"host": sys.argv[1], "port": int(sys.argv[2]), "user": "postgres", "database": "postgres"}


async def here(connection):
    await connection.execute("SET search_path = matrix_asyncpg")


async def connect(**more):
    connection = await asyncpg.connect(**SERVER, **more)
    await here(connection)
    return connection


def check(function):
    CHECKS.append((function.__name__, function, False))
    return function


def family(name, cases, function):
    for case, *arguments in cases:
        CHECKS.append((f"{name} {case}", lambda connection, arguments=arguments: function(connection, *arguments), True))


def diagnostics(error):
    fields = (
        "severity severity_en sqlstate message detail hint position internal_position internal_query context schema_name "
        "table_name column_name data_type_name constraint_name"
    )
    found = {field: getattr(error, field, None) for field in fields.split()}
    return type(error).__name__, {field: value for field, value in found.items() if value is not None}


async def refused(awaitable, usable=None):
    try:
        return await awaitable
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        seen = diagnostics(error) if isinstance(error, asyncpg.PostgresError) else repr(error)
        return (seen, await usable.fetchval("SELECT 'usable'")) if usable else seen


def short(value):
    return value if len(repr(value)) < 300 else (type(value).__name__, len(value))


# ---------------------------------------------------------------------------------------------------- values out

OUT = [
    ("bool", "true, false, NULL::bool"),
    ("int2", "32767::int2, (-32768)::int2"),
    ("int4", "2147483647, -2147483648"),
    ("int8", "9223372036854775807, -9223372036854775808"),
    ("oid", "4294967295::oid"),
    ("float4", "1.5::float4, 'nan'::float4, '-inf'::float4"),
    ("float8", "1e308::float8, 'nan'::float8, 'inf'::float8"),
    ("numeric", "12345.678900::numeric, 'nan'::numeric, 0::numeric(6,3), 1e-20::numeric, -1e40::numeric"),
    ("text", "'', 'ä€😀', repeat('x', 70000)"),
    ("varchar", "'abc'::varchar(5), 'abc'::char(6), 'n'::name, 'c'::\"char\""),
    ("bytea", "'\\x00ff10'::bytea, ''::bytea, decode(repeat('ab', 5000), 'hex')"),
    ("date", "'2024-02-29'::date, '0001-01-01'::date, 'infinity'::date"),
    ("time", "'13:14:15.123456'::time, '13:14:15+02'::timetz"),
    ("timestamp", "'2024-02-29 13:14:15.5'::timestamp, '-infinity'::timestamp"),
    ("timestamptz", "'2024-02-29 13:14:15.123456+05:30'::timestamptz"),
    ("interval", "'1 month 1 day 02:03:04.5'::interval, '-1 day'::interval"),
    ("json", """'{"a": [1, null, "ä"]}'::json"""),
    ("jsonb", """'{"b": {"c": 1.50}}'::jsonb, 'null'::jsonb"""),
    ("uuid", "'c2f0e1a4-0000-4000-8000-000000000001'::uuid"),
    ("inet", "'10.0.0.1/8'::inet, '::1'::inet, '10.0.0.0/8'::cidr, '08:00:2b:01:02:03'::macaddr"),
    ("arrays", "ARRAY[1, NULL, 3], ARRAY['a', NULL, 'b,\"c'], ARRAY[[1, 2], [3, 4]], '{}'::int[]"),
    ("ranges", "int4range(1, 5), '[2024-01-01,)'::daterange, 'empty'::int8range, numrange(NULL, 1.5)"),
    ("multiranges", "'{[1,3),[5,9)}'::int4multirange, '{}'::datemultirange"),
    ("enum", "'happy'::mood, ARRAY['sad', 'ok']::mood[]"),
    ("composite", "ROW(1, 'x')::pair, ROW(NULL, NULL)::pair, ARRAY[ROW(1, 'y')::pair]"),
    ("record", "ROW(1, 'x'::text, NULL::int), ROW()"),
    ("domain", "5::positive"),
    ("geometry", "'(1,2)'::point, '((0,0),(1,1))'::box, '<(0,0),1>'::circle"),
    ("bits", "B'101', '1010'::varbit"),
    ("money and xml", "12.34::money, '<a/>'::xml"),
    ("search", "'a fat cat'::tsvector, 'fat & cat'::tsquery"),
    ("catalogue", "'pg_class'::regclass, '0/16B3748'::pg_lsn, '(0,1)'::tid"),
    ("nothing", "NULL, NULL::text, NULL::bytea, NULL::int[]"),
]


async def values_out(connection, expressions):
    row = await connection.fetchrow(f"SELECT {expressions}")
    return [short(value) for value in row]


family("out", OUT, values_out)

TZ = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
IN = [
    ("bool", "bool", True),
    ("smallint", "int2", 7),
    ("integer", "int4", -(2**31)),
    ("bigint", "int8", -(2**62)),
    ("float4", "float4", 1.5),
    ("float8", "float8", 1.1),
    ("nan", "float8", float("nan")),
    ("infinity", "float8", float("-inf")),
    ("numeric", "numeric", decimal.Decimal("-12345.678900")),
    ("huge numeric", "numeric", decimal.Decimal(10) ** 40),
    ("numeric nan", "numeric", decimal.Decimal("NaN")),
    ("text", "text", "ä€😀'\\"),
    ("empty text", "text", ""),
    ("bytes", "bytea", b"\x00\xff'\\"),
    ("no bytes", "bytea", b""),
    ("date", "date", datetime.date(2024, 2, 29)),
    ("time", "time", datetime.time(1, 2, 3, 456789)),
    ("timestamp", "timestamp", datetime.datetime(2024, 2, 29, 1, 2, 3)),
    ("timestamptz", "timestamptz", datetime.datetime(2024, 2, 29, 1, 2, 3, tzinfo=TZ)),
    ("interval", "interval", datetime.timedelta(days=-3, seconds=5, microseconds=7)),
    ("uuid", "uuid", uuid.UUID("c2f0e1a4-0000-4000-8000-000000000001")),
    ("address", "inet", ipaddress.ip_interface("10.0.0.1/8")),
    ("network", "cidr", ipaddress.ip_network("fe80::/10")),
    ("integers", "int[]", [1, None, 3]),
    ("texts", "text[]", ["a", None, 'b,"c\\']),
    ("nested", "int[]", [[1, 2], [3, 4]]),
    ("empty list", "int[]", []),
    ("json", "json", '{"a": [1, null]}'),
    ("jsonb", "jsonb", '{"a": "ä"}'),
    ("range", "int4range", asyncpg.Range(1, 5)),
    ("open range", "daterange", asyncpg.Range(datetime.date(2024, 1, 1), None)),
    ("empty range", "int4range", asyncpg.Range(empty=True)),
    ("multirange", "int4multirange", [asyncpg.Range(1, 3), asyncpg.Range(5, 9)]),
    ("enum", "mood", "ok"),
    ("composite", "pair", (5, 'a "quoted", word')),
    ("composites", "pair[]", [(1, "x"), (2, None)]),
    ("point", "point", asyncpg.Point(1, 2)),
    ("bits", "varbit", asyncpg.BitString("10101")),
    ("null", "int", None),
    ("null text", "text", None),
    ("megabyte", "bytea", b"\x00\x01\x02\x03" * 262144),
]


async def values_in(connection, kind, value):
    row = await connection.fetchrow(f"SELECT $1::{kind}, md5($1::{kind}::text), $1::{kind} IS NULL", value)
    return [short(value) for value in row]


family("in", IN, values_in)


@check
async def codecs_of_ones_own(connection):
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    await connection.set_type_codec("numeric", encoder=str, decoder=float, schema="pg_catalog", format="text")
    return [*await connection.fetchrow("SELECT $1::jsonb, $2::numeric", {"a": [1]}, 1.5)]


# ---------------------------------------------------------------------------------------------------- statements


@check
async def prepared(connection):
    statement = await connection.prepare("SELECT id, word AS w, price FROM item WHERE id > $1 AND word LIKE $2 ORDER BY id LIMIT 2")
    seen = [[tuple(row) for row in await statement.fetch(n, "word%")] for n in range(3)]
    return statement.get_parameters(), statement.get_attributes(), statement.get_statusmsg(), seen


@check
async def prepared_by_name(connection):
    statement = await connection.prepare("SELECT $1::int * 2", name="twice")
    return await statement.fetchval(21), await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name = 'twice'")


@check
async def prepared_many_times(connection):
    statement = await connection.prepare("INSERT INTO part VALUES ($1, $2)")
    await statement.executemany([(n, n % 50 + 1) for n in range(500)])
    return await connection.execute("DELETE FROM part")


@check
async def prepared_explained(connection):
    statement = await connection.prepare("SELECT word FROM item WHERE id = $1")
    plan = await statement.explain(3)
    return plan[0]["Plan"]["Node Type"], plan[0]["Plan"]["Index Name"]


@check
async def statement_after_its_table_changed(connection):
    await connection.execute("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)")
    seen = [tuple(await connection.fetchrow("SELECT * FROM changing"))]
    async with connection.transaction():
        pass
    await connection.execute("ALTER TABLE changing ADD b text DEFAULT 'new'")
    seen.append(tuple(await connection.fetchrow("SELECT * FROM changing")))
    statement = await connection.prepare("SELECT * FROM changing")
    await connection.execute("ALTER TABLE changing DROP b")
    seen.append(await refused(statement.fetch(), connection))
    await connection.execute("DROP TABLE changing")
    return seen


@check
async def statement_cache_off(_):
    connection = await connect(statement_cache_size=0)
    try:
        return [await connection.fetchval("SELECT $1::int + 1", n) for n in range(5)]
    finally:
        await connection.close()


@check
async def tags(connection):
    statements = (
        "INSERT INTO item VALUES (100, 'x', 1, NULL), (101, 'y', 1, NULL)", "UPDATE item SET price = 2 WHERE id >= 100",
        "DELETE FROM item WHERE id >= 100", "SELECT 1 WHERE false", "CREATE TEMP TABLE c AS SELECT 1", "TRUNCATE c", "BEGIN", "ROLLBACK",
    )
    return [await connection.execute(statement) for statement in statements]


@check
async def several_statements(connection):
    return await connection.execute("SELECT 1; INSERT INTO part VALUES (1, 1); DELETE FROM part; SELECT 2")


@check
async def several_statements_with_an_error(connection):
    seen = await refused(connection.execute("INSERT INTO part VALUES (2, 2); SELECT 1/0; INSERT INTO part VALUES (3, 3)"))
    return seen, await connection.fetchval("SELECT count(*) FROM part")


@check
async def several_statements_prepared(connection):
    return await refused(connection.fetch("SELECT 1; SELECT 2"), connection)


@check
async def empty_statement_prepared(connection):
    return await connection.fetch(""), await connection.fetchval("SELECT 1")


@check
async def executemany(connection):
    await connection.executemany("INSERT INTO part VALUES ($1, $2)", [(n, n % 50 + 1) for n in range(3000)])
    return await connection.execute("DELETE FROM part")


@check
async def executemany_with_an_error(connection):
    seen = await refused(connection.executemany("INSERT INTO part VALUES ($1, $2)", [(n, 1) for n in (1, 2, 2, 3)]), connection)
    return seen, await connection.fetchval("SELECT count(*) FROM part")


@check
async def fetchmany(connection):
    rows = await connection.fetchmany("SELECT $1::int AS n", [(n,) for n in range(5)])
    return [row["n"] for row in rows]


@check
async def many_parameters(connection):
    marks = ", ".join(f"${n}::int" for n in range(1, 5001))
    return await connection.fetchval(f"SELECT sum(n) FROM unnest(ARRAY[{marks}]) AS n", *range(5000))


@check
async def statements_prepared_in_sql(connection):
    await connection.execute("PREPARE by_id (int) AS SELECT word FROM item WHERE id = $1")
    seen = await connection.fetchval("EXECUTE by_id(3)")
    await connection.execute("DEALLOCATE by_id")
    return seen, await refused(connection.fetchval("EXECUTE by_id(4)"), connection)


# -------------------------------------------------------------------------------------------------------- cursors


@check
async def cursor_iterates(connection):
    async with connection.transaction():
        return [row[0] async for row in connection.cursor("SELECT n FROM generate_series(1, 35) AS n", prefetch=10)]


@check
async def cursor_fetches_and_forwards(connection):
    async with connection.transaction():
        cursor = await connection.cursor("SELECT n FROM generate_series(1, $1::int) AS n", 40)
        seen = [(await cursor.fetch(3))[-1][0], await cursor.forward(20), (await cursor.fetchrow())[0], len(await cursor.fetch(100))]
        return seen, await cursor.fetchrow()


@check
async def two_cursors_in_turn(connection):
    async with connection.transaction():
        one = await connection.cursor("SELECT n FROM generate_series(1, 100) AS n")
        two = await connection.cursor("SELECT n * 10 FROM generate_series(1, 100) AS n")
        return [[(await cursor.fetchrow())[0] for cursor in (one, two)] for _ in range(4)]


@check
async def cursor_meets_an_error(connection):
    async def walk():
        async with connection.transaction():
            return [row[0] async for row in connection.cursor("SELECT 10 / (5 - n) FROM generate_series(1, 10) AS n", prefetch=2)]

    return await refused(walk(), connection)


@check
async def cursor_declared_in_sql(connection):
    async with connection.transaction():
        await connection.execute("DECLARE c SCROLL CURSOR FOR SELECT id FROM item ORDER BY id")
        seen = [[row[0] for row in await connection.fetch(text)] for text in ("FETCH 2 FROM c", "FETCH LAST FROM c", "FETCH BACKWARD 2 FROM c")]
        return seen, await connection.execute("MOVE FORWARD ALL FROM c"), await connection.execute("CLOSE c")


@check
async def cursor_outside_of_a_transaction(connection):
    async def alone():
        return await connection.cursor("SELECT 1")

    return await refused(alone(), connection)


# --------------------------------------------------------------------------------------------------------- errors

ERRORS = [
    ("syntax", "SELEC 1"),
    ("division", "SELECT 1/0"),
    ("column", "SELECT nothing FROM item"),
    ("table", "SELECT * FROM nowhere"),
    ("function", "SELECT nofunction(1, 'x')"),
    ("cast", "SELECT 'x'::int"),
    ("not null", "INSERT INTO item VALUES (900, NULL)"),
    ("unique", "INSERT INTO item VALUES (1, 'again')"),
    ("check constraint", "INSERT INTO item VALUES (901, 'x', -1)"),
    ("foreign key", "INSERT INTO part VALUES (1, 99999)"),
    ("domain", "SELECT (-1)::positive"),
    ("enum", "SELECT 'angry'::mood"),
    ("numeric overflow", "INSERT INTO item VALUES (902, 'x', 12345678.9)"),
    ("internal query", "DO $$ BEGIN EXECUTE 'SELECT nothing FROM item'; END $$"),
]

family("simple error", ERRORS, lambda connection, statement: refused(connection.execute(statement), connection))
family("prepared error", ERRORS, lambda connection, statement: refused(connection.fetch(statement), connection))


@check
async def error_while_binding(connection):
    return await refused(connection.fetchval("SELECT 1 / $1::int", 0), connection)


@check
async def error_in_a_deferred_constraint(connection):
    await connection.execute("CREATE TABLE late (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    async def twice():
        async with connection.transaction():
            await connection.executemany("INSERT INTO late VALUES ($1)", [(1,), (1,)])

    return await refused(twice(), connection)


@check
async def notices(connection):
    heard = []
    connection.add_log_listener(lambda _, message: heard.append((message.severity, message.message, message.detail, message.hint, message.context)))
    await connection.execute("SELECT tell()")
    await connection.fetch("SELECT tell()")
    await asyncio.sleep(0)
    return heard


# --------------------------------------------------------------------------------------------------- transactions


@check
async def transactions(connection):
    seen = []
    for isolation in ("read_uncommitted", "read_committed", "repeatable_read", "serializable"):
        async with connection.transaction(isolation=isolation, readonly=True):
            seen.append(await connection.fetchval("SELECT current_setting('transaction_isolation') || current_setting('transaction_read_only')"))
    return seen, connection.is_in_transaction()


@check
async def savepoints(connection):
    seen = []
    async with connection.transaction():
        await connection.execute("INSERT INTO part VALUES (1, 1)")
        for statement in ("INSERT INTO part VALUES (2, 2)", "SELECT 1/0", "INSERT INTO part VALUES (1, 1)"):
            try:
                async with connection.transaction():
                    await connection.execute(statement)
            except asyncpg.PostgresError as error:
                seen.append(error.sqlstate)
            seen.append(connection.is_in_transaction())
        seen.append(await connection.fetchval("SELECT array_agg(id ORDER BY id) FROM part"))
    await connection.execute("DELETE FROM part")
    return seen


@check
async def failed_transaction(connection):
    await connection.execute("BEGIN")
    seen = [await refused(connection.fetch("SELECT 1/0")), await refused(connection.fetch("SELECT 1"))]
    return seen, await connection.execute("COMMIT"), connection.is_in_transaction()


@check
async def deadlock(connection):
    other = await connect()
    await connection.execute("SET deadlock_timeout = '50ms'")
    await other.execute("SET deadlock_timeout = '60s'")
    await connection.execute("BEGIN; UPDATE item SET word = word WHERE id = 1")
    await other.execute("BEGIN; UPDATE item SET word = word WHERE id = 2")
    waits = asyncio.ensure_future(other.execute("UPDATE item SET word = word WHERE id = 1"))
    while not await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
        await connection.execute("SELECT pg_stat_clear_snapshot(), pg_sleep(0.05)")
    try:
        await connection.execute("UPDATE item SET word = word WHERE id = 2")
    except asyncpg.PostgresError as error:
        seen = type(error).__name__, error.sqlstate, error.hint
    await connection.execute("ROLLBACK")
    tag = await waits
    await other.execute("ROLLBACK")
    await other.close()
    return seen, tag


# ----------------------------------------------------------------------------------------------------------- copy

ROWS = [(1, "plain"), (2, None), (3, "tab\tnew\nline\\ 'q' \"d\""), (4, "ä€😀"), (5, "")]
FORMATS = [
    ("text", {}),
    ("csv", {"format": "csv"}),
    ("csv with header", {"format": "csv", "header": True, "delimiter": ";", "null": "none"}),
    ("binary", {"format": "binary"}),
]


async def copy_both_ways(connection, how):
    await connection.execute("CREATE TEMP TABLE copied (id int, word text); CREATE TEMP TABLE back (LIKE copied)")
    seen = [await connection.copy_records_to_table("copied", records=ROWS)]
    out = io.BytesIO()
    seen.append(await connection.copy_from_query("SELECT * FROM copied WHERE id > $1 ORDER BY id", 0, output=out, **how))
    out.seek(0)
    seen.append(await connection.copy_to_table("back", source=out, **how))
    rows = [tuple(row) for row in await connection.fetch("SELECT * FROM back ORDER BY id")]
    await connection.execute("DROP TABLE copied, back")
    return seen, out.getvalue(), rows == ROWS


family("copy", FORMATS, copy_both_ways)


@check
async def copy_from_a_table(connection):
    out = io.BytesIO()
    tag = await connection.copy_from_table("item", output=out, schema_name="matrix_asyncpg", columns=["id", "seen"], format="csv")
    return tag, len(out.getvalue()), out.getvalue()[:40]


@check
async def copy_much(connection):
    await connection.execute("CREATE TEMP TABLE much (n int, pad text)")
    tag = await connection.copy_records_to_table("much", records=((n, "padding " * 4) for n in range(5_000)))
    return tag, tuple(await connection.fetchrow("SELECT count(*), sum(n), sum(length(pad)) FROM much"))


@check
async def copy_from_a_generator(connection):
    async def blocks():
        for n in range(1000):
            yield b"%d\t%d\n" % (n, n % 50 + 1)

    tag = await connection.copy_to_table("part", source=blocks())
    return tag, await connection.execute("DELETE FROM part")


@check
async def copy_refused_by_the_server(connection):
    return await refused(connection.copy_to_table("part", source=io.BytesIO(b"1\tx\n" * 1000)), connection)


@check
async def copy_refused_by_the_client(connection):
    async def blocks():
        yield b"1\t1\n"
        raise KeyError("changed my mind")

    try:
        await connection.copy_to_table("part", source=blocks())
    except KeyError:
        return await connection.fetchval("SELECT count(*) FROM part")


# --------------------------------------------------------------------------------------------------- asynchronous


@check
async def notifications(connection):
    heard = asyncio.Queue()
    await connection.add_listener("news", lambda c, pid, channel, payload: heard.put_nowait((channel, payload[:3], len(payload), pid == c.get_server_pid())))
    other = await connect()
    await other.execute("NOTIFY news, 'one'")
    await other.execute("SELECT pg_notify('news', 'ä' || repeat('x', 7000))")
    await connection.execute("NOTIFY news")
    await other.close()
    return [await asyncio.wait_for(heard.get(), 20) for _ in range(3)]


@check
async def cancelled_by_a_timeout(connection):
    try:
        await connection.fetch("SELECT pg_sleep(90)", timeout=0.3)
    except asyncio.TimeoutError:
        return "timed out", await connection.fetchval("SELECT 'usable'")


@check
async def cancelled_as_a_task(connection):
    task = asyncio.ensure_future(connection.fetch("SELECT pg_sleep(90)"))
    await asyncio.sleep(0.3)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "cancelled", await connection.fetchval("SELECT 'usable'")


@check
async def statement_timeout(connection):
    await connection.execute("SET statement_timeout = '50ms'")
    return await refused(connection.fetch("SELECT pg_sleep(90)"), connection)


@check
async def terminated(connection):
    other = await connect()
    killed = await other.fetchval("SELECT pg_terminate_backend($1)", connection.get_server_pid())
    await other.close()
    for _ in range(400):
        if connection.is_closed():
            break
        await asyncio.sleep(0.05)
    return killed, connection.is_closed()


@check
async def pool(_):
    async with asyncpg.create_pool(**SERVER, min_size=2, max_size=5, setup=here) as pool:
        return await asyncio.gather(*(pool.fetchval("SELECT word FROM item WHERE id = $1", n) for n in range(1, 31)))


# -------------------------------------------------------------------------------------------------------- session


@check
async def settings(connection):
    reported = connection.get_settings()
    names = (
        "server_version server_encoding client_encoding is_superuser session_authorization DateStyle IntervalStyle TimeZone "
        "integer_datetimes standard_conforming_strings in_hot_standby default_transaction_read_only application_name"
    )
    return {name: getattr(reported, name, None) for name in names.split()}, connection.get_server_version()


@check
async def settings_change(connection):
    await connection.execute("SET TimeZone = 'Asia/Tokyo'; SET application_name = 'matrix'")
    reported = connection.get_settings()
    seen = [reported.TimeZone, reported.application_name]
    await connection.reset()
    return seen, connection.get_settings().TimeZone


@check
async def start_up_settings(_):
    connection = await connect(server_settings={"statement_timeout": "12345", "application_name": "from the start", "jit": "off"})
    try:
        return tuple(await connection.fetchrow("SELECT current_setting('statement_timeout'), current_setting('application_name'), current_setting('jit')"))
    finally:
        await connection.close()


@check
async def reset_and_discard(connection):
    await connection.execute("CREATE TEMP TABLE gone (a int); SET work_mem = '1MB'; LISTEN x")
    await connection.reset()
    await connection.execute("DISCARD ALL")
    return tuple(await connection.fetchrow("SELECT to_regclass('pg_temp.gone'), current_setting('work_mem')"))


@check
async def large_value(connection):
    text = await connection.fetchval("SELECT repeat('0123456789', 300000)")
    return len(text), await connection.fetchval("SELECT md5($1::text)", text)


@check
async def large_result(connection):
    rows = await connection.fetch("SELECT n, md5(n::text), NULL::int FROM generate_series(1, 20000) AS n")
    return len(rows), tuple(rows[-1]), sum(row[0] for row in rows)


@check
async def wide_result(connection):
    row = await connection.fetchrow("SELECT " + ", ".join(f"{n} AS c{n}" for n in range(1600)))
    return len(row), sum(row)


@check
async def types_looked_up(connection):
    row = await connection.fetchrow("SELECT $1::mood AS m, $2::pair AS p, $3::positive AS d", "sad", (1, "x"), 7)
    statement = await connection.prepare("SELECT $1::mood, $2::pair, $3::positive")
    return tuple(row), [(p.name, p.kind, p.schema) for p in statement.get_parameters()]


async def run(name, function, connection):
    try:
        print(f"ok {name}: {await asyncio.wait_for(function(connection), 60)!r}", flush=True)
    except Exception as error:  # noqa: BLE001: whatever it is, it is what this check saw
        print(f"FAILED {name}: {type(error).__name__} {error}".replace("\n", " "), flush=True)


async def main():
    connection = await asyncpg.connect(**SERVER)
    await connection.execute(SETUP)
    await connection.close()
    shared = await connect()
    for name, function, clean in CHECKS:
        if clean:
            await run(name, function, shared)
        else:
            own = await connect()
            await run(name, function, own)
            own.terminate()
    shared.terminate()


asyncio.run(main())
