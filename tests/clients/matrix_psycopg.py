"""What a psycopg 3 program sees of every kind of thing that it can ask for: one line for each.

usage: matrix_psycopg.py CONNINFO, as the server's superuser in a database of its own. Prints `ok NAME: VALUE` or
`FAILED NAME: ERROR`; nothing in it depends on when or where it ran.
"""

import asyncio
import datetime
import decimal
import ipaddress
import sys
import threading
import time
import uuid

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Json, Jsonb
from psycopg.types.range import Range
from psycopg.types.multirange import Multirange

# Each a name, a function, and whether it leaves the connection as it found it.
CHECKS = []

SETUP = """
    CREATE SCHEMA matrix_psycopg; SET search_path = matrix_psycopg;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TYPE pair AS (number int, word text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE item (id int PRIMARY KEY, word text NOT NULL, price numeric(8, 2) CHECK (price >= 0), seen timestamptz);
    INSERT INTO item SELECT n, 'word ' || n, n * 1.5, '2024-02-29 12:00:00+00'::timestamptz + n * interval '1 hour'
        FROM generate_series(1, 50) AS n;
    CREATE TABLE part (id int PRIMARY KEY, item int REFERENCES item);
    CREATE FUNCTION tell(level text) RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE format('DO $d$ BEGIN RAISE %s ''told %%'', 7 USING DETAIL = ''why'', HINT = ''how''; END $d$', level); END $$;
"""


def check(function):
    CHECKS.append((function.__name__, function, False))
    return function


def family(name, cases, function):
    for case, *arguments in cases:
        CHECKS.append((f"{name} {case}", lambda connection, arguments=arguments: function(connection, *arguments), True))


def diagnostics(error):
    fields = (
        "severity severity_nonlocalized sqlstate message_primary message_detail message_hint statement_position "
        "internal_position internal_query context schema_name table_name column_name datatype_name constraint_name "
        "source_function"
    )
    found = {field: getattr(error.diag, field) for field in fields.split()}
    return type(error).__name__, {field: value for field, value in found.items() if value is not None}


# ---------------------------------------------------------------------------------------------------- values out

OUT = [
    ("bool", "true, false, NULL::bool"),
    ("int2", "32767::int2, (-32768)::int2"),
    ("int4", "2147483647, -2147483648"),
    ("int8", "9223372036854775807, -9223372036854775808"),
    ("oid", "4294967295::oid"),
    ("float4", "1.5::float4, 'nan'::float4, '-inf'::float4"),
    ("float8", "1e308::float8, 'nan'::float8, 'inf'::float8, 5e-324::float8"),
    ("numeric", "12345.678900::numeric, 'nan'::numeric, 0::numeric(6,3), 1e-20::numeric, -1e40::numeric"),
    ("text", "'', 'ä€😀', repeat('x', 70000)::text"),
    ("varchar", "'abc'::varchar(5), 'abc'::char(6), 'n'::name, 'c'::\"char\""),
    ("bytea", "'\\x00ff10'::bytea, ''::bytea, decode(repeat('ab', 5000), 'hex')"),
    ("date", "'2024-02-29'::date, '0001-01-01'::date, '9999-12-31'::date"),
    ("time", "'13:14:15.123456'::time, '13:14:15+02'::timetz"),
    ("timestamp", "'2024-02-29 13:14:15.5'::timestamp, '1000-01-01'::timestamp"),
    ("timestamptz", "'2024-02-29 13:14:15.123456+05:30'::timestamptz"),
    ("interval", "'1 day 02:03:04.5'::interval, '-1 day'::interval"),
    ("json", """'{"a": [1, null, "ä"]}'::json"""),
    ("jsonb", """'{"b": {"c": 1.50}}'::jsonb, 'null'::jsonb"""),
    ("uuid", "'c2f0e1a4-0000-4000-8000-000000000001'::uuid"),
    ("inet", "'10.0.0.1/8'::inet, '::1'::inet, '10.0.0.0/8'::cidr, '08:00:2b:01:02:03'::macaddr"),
    ("arrays", "ARRAY[1, NULL, 3], ARRAY['a', NULL, 'b,\"c'], ARRAY[[1, 2], [3, 4]], '{}'::int[], '[2:3]={7,8}'::int[]"),
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
    ("catalogue", "'pg_class'::regclass, 'now()'::regprocedure, '0/16B3748'::pg_lsn, '10:20:10,14'::pg_snapshot"),
    ("nothing", "NULL, NULL::text, NULL::bytea, NULL::int[]"),
]


def values_out(connection, expressions, binary):
    with connection.cursor(binary=binary) as cursor:
        row = cursor.execute(f"SELECT {expressions}", binary=binary).fetchone()
        types = [(column.type_code if column.type_code < 16384 else "own", column.internal_size) for column in cursor.description]
        shown = [value if len(str(value)) < 200 else (type(value).__name__, len(value)) for value in row]
        return types, shown


family("text out", [(name, text, False) for name, text in OUT], values_out)
family("binary out", [(name, text, True) for name, text in OUT], values_out)

# ----------------------------------------------------------------------------------------------------- values in

TZ = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
IN = [
    ("bool", "bool", True),
    ("smallint", "int2", 7),
    ("bigint", "int8", -(2**62)),
    ("huge integer", "numeric", 10**40),
    ("float", "float8", 1.1),
    ("nan", "float8", float("nan")),
    ("infinity", "float8", float("-inf")),
    ("decimal", "numeric", decimal.Decimal("-12345.678900")),
    ("decimal nan", "numeric", decimal.Decimal("NaN")),
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
    ("json", "json", Json({"a": [1, None]})),
    ("jsonb", "jsonb", Jsonb({"a": "ä"})),
    ("range", "int4range", Range(1, 5)),
    ("open range", "daterange", Range(datetime.date(2024, 1, 1), None)),
    ("empty range", "int4range", Range(empty=True)),
    ("multirange", "int4multirange", Multirange([Range(1, 3), Range(5, 9)])),
    ("null", "int", None),
    ("null text", "text", None),
    ("megabyte", "bytea", b"\x00\x01\x02\x03" * 262144),
]


def values_in(connection, kind, value, form):
    row = connection.execute(
        f"SELECT %{form}::{kind}, md5(%{form}::{kind}::text), %{form}::{kind} IS NULL", (value, value, value)
    ).fetchone()
    return row if len(str(row)) < 400 else row[1:]


family("text in", [(name, kind, value, "t") for name, kind, value in IN], values_in)
family("binary in", [(name, kind, value, "b") for name, kind, value in IN if not isinstance(value, Json)], values_in)


@check
def enum_in_and_out(connection):
    register_enum(EnumInfo.fetch(connection, "mood"), connection)
    mood = connection.execute("SELECT 'ok'::mood").fetchone()[0]
    return mood, connection.execute("SELECT %s::mood, %b::mood", (mood, mood)).fetchone()


@check
def composite_in_and_out(connection):
    info = CompositeInfo.fetch(connection, "pair")
    register_composite(info, connection)
    pair = info.python_type(5, 'a "quoted", word')
    return [connection.execute(f"SELECT (%{form}::pair).word, %{form}::pair", (pair, pair), binary=form == "b").fetchone() for form in "tb"]


# ---------------------------------------------------------------------------------------------------- statements


@check
def columns(connection):
    cursor = connection.execute("SELECT id, word AS w, price, id + 1, seen FROM item LIMIT 0")
    return [(c.name, c.type_code, c.display_size, c.internal_size, c.precision, c.scale) for c in cursor.description]


@check
def row_counts_and_tags(connection):
    statements = (
        "INSERT INTO item VALUES (100, 'x', 1, NULL), (101, 'y', 1, NULL)", "UPDATE item SET price = 2 WHERE id >= 100",
        "DELETE FROM item WHERE id >= 100 RETURNING id", "SELECT 1 WHERE false", "VALUES (1), (2)", "TABLE item",
        "CREATE TEMP TABLE c AS SELECT 1", "TRUNCATE c", "SHOW search_path", "EXPLAIN (COSTS off) SELECT 1",
        "WITH gone AS (DELETE FROM item WHERE false RETURNING 1) SELECT count(*) FROM gone", "BEGIN", "COMMIT",
        "MERGE INTO c USING (VALUES (1)) AS v(n) ON false WHEN NOT MATCHED THEN INSERT VALUES (v.n)",
    )
    seen = []
    for statement in statements:
        cursor = connection.execute(statement)
        seen.append((cursor.statusmessage, cursor.rowcount))
    return seen


@check
def empty_query(connection):
    cursor = connection.execute("")
    return cursor.pgresult.status, cursor.statusmessage, connection.execute(" -- nothing").pgresult.status


@check
def several_statements(connection):
    cursor = connection.execute("SELECT 1; SELECT 'two' WHERE false; INSERT INTO part VALUES (1, 1); SELECT id FROM part; DELETE FROM part")
    seen = []
    while True:
        seen.append((cursor.statusmessage, cursor.fetchall() if cursor.description else None))
        if not cursor.nextset():
            return seen


@check
def several_statements_with_an_error(connection):
    try:
        connection.execute("INSERT INTO part VALUES (2, 2); SELECT 1/0; INSERT INTO part VALUES (3, 3)")
    except psycopg.Error as error:
        return diagnostics(error), connection.execute("SELECT count(*) FROM part").fetchone()


@check
def one_statement_many_parameters(connection):
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO part VALUES (%s, %s)", [(n, n % 50 + 1) for n in range(1000)])
        total = cursor.rowcount
    return total, connection.execute("DELETE FROM part").rowcount


@check
def executemany_returning(connection):
    with connection.cursor() as cursor:
        cursor.executemany("SELECT %s::int * 2", [(n,) for n in range(5)], returning=True)
        seen = [cursor.fetchall()]
        while cursor.nextset():
            seen.append(cursor.fetchall())
        return seen


@check
def many_parameters(connection):
    count = 5000
    marks = ", ".join(["%s::int"] * count)
    return connection.execute(f"SELECT sum(n) FROM unnest(ARRAY[{marks}]) AS n", list(range(count))).fetchone()


@check
def named_statements(connection):
    seen = [connection.execute("SELECT word FROM item WHERE id = %s", (n,), prepare=True).fetchone() for n in range(1, 8)]
    names = connection.execute("SELECT statement, parameter_types::text FROM pg_prepared_statements WHERE NOT from_sql ORDER BY 1").fetchall()
    return seen, names


@check
def statements_prepared_in_sql(connection):
    connection.execute("PREPARE by_id (int) AS SELECT word FROM item WHERE id = $1")
    seen = connection.execute("EXECUTE by_id(3)").fetchall()
    connection.execute("DEALLOCATE by_id")
    try:
        connection.execute("EXECUTE by_id(3)")
    except psycopg.Error as error:
        return seen, diagnostics(error)


@check
def statement_after_its_table_changed(connection):
    connection.execute("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)")
    seen = [connection.execute("SELECT * FROM changing", prepare=True).fetchone()]
    connection.execute("ALTER TABLE changing ADD b text DEFAULT 'new'")
    try:
        seen.append(connection.execute("SELECT * FROM changing", prepare=True).fetchone())
    except psycopg.Error as error:
        seen.append(diagnostics(error))
    connection.execute("DROP TABLE changing")
    return seen


@check
def rows_one_by_one(connection):
    with connection.cursor() as cursor:
        return [row[0] for row in cursor.stream("SELECT n FROM generate_series(1, 200) AS n")][-3:]


@check
def rows_one_by_one_cut_short(connection):
    with connection.cursor() as cursor:
        rows = cursor.stream("SELECT n FROM generate_series(1, 100000) AS n")
        first = next(rows)
        rows.close()
    return first, connection.execute("SELECT 1").fetchone()


@check
def rows_as_dictionaries(connection):
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT id, word FROM item ORDER BY id LIMIT 2").fetchall()


@check
def cursor_bound_to_the_client(connection):
    with psycopg.ClientCursor(connection) as cursor:
        return cursor.execute("SELECT %s, %s, %s", ("it's", None, [1, 2])).fetchone(), cursor.mogrify("SELECT %s", ("x",))


@check
def cursor_of_raw_parameters(connection):
    with psycopg.RawCursor(connection) as cursor:
        return cursor.execute("SELECT $1::int + $2::int, $1::int", (1, 2)).fetchone()


# -------------------------------------------------------------------------------------------------- server cursors


@check
def server_cursor(connection):
    with connection.transaction(), connection.cursor(name="walk") as cursor:
        cursor.itersize = 10
        cursor.execute("SELECT n FROM generate_series(1, 35) AS n")
        return [row[0] for row in cursor], cursor.rownumber


@check
def server_cursor_scrolls(connection):
    with connection.transaction(), connection.cursor(name="scroll", scrollable=True) as cursor:
        cursor.execute("SELECT n FROM generate_series(1, 35) AS n")
        seen = [cursor.fetchmany(3)]
        cursor.scroll(20)
        seen.append(cursor.fetchone())
        cursor.scroll(1, mode="absolute")
        seen.append(cursor.fetchmany(2))
        return seen


@check
def server_cursor_with_hold(connection):
    with connection.transaction():
        cursor = connection.cursor(name="held", withhold=True)
        cursor.execute("SELECT id FROM item ORDER BY id")
    seen = cursor.fetchmany(4)
    cursor.close()
    return seen


@check
def server_cursor_binary(connection):
    with connection.transaction(), connection.cursor(name="bin", binary=True) as cursor:
        cursor.execute("SELECT id, price, seen, word FROM item ORDER BY id LIMIT 3")
        return cursor.fetchall()


@check
def cursor_declared_in_sql(connection):
    with connection.transaction():
        connection.execute("DECLARE c SCROLL CURSOR FOR SELECT id FROM item ORDER BY id")
        seen = [connection.execute(text).fetchall() for text in ("FETCH 2 FROM c", "FETCH LAST FROM c", "FETCH BACKWARD 2 FROM c")]
        seen.append(connection.execute("MOVE FORWARD ALL FROM c").statusmessage)
        connection.execute("CLOSE c")
        return seen


@check
def cursor_update_where_current(connection):
    with connection.transaction(force_rollback=True):
        connection.execute("DECLARE c CURSOR FOR SELECT id FROM item WHERE id = 7 FOR UPDATE")
        connection.execute("FETCH c")
        return connection.execute("UPDATE item SET word = 'here' WHERE CURRENT OF c RETURNING id, word").fetchall()


@check
def cursor_from_a_function(connection):
    connection.execute("CREATE FUNCTION opened() RETURNS refcursor LANGUAGE plpgsql AS $$ DECLARE c refcursor := 'by_function'; BEGIN OPEN c FOR SELECT id FROM matrix_psycopg.item ORDER BY id; RETURN c; END $$")
    with connection.transaction():
        return connection.execute("SELECT opened()").fetchone(), connection.execute("FETCH 3 FROM by_function").fetchall()


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
    ("in a function", "SELECT tell('EXCEPTION')"),
    ("internal query", "DO $$ BEGIN EXECUTE 'SELECT nothing FROM item'; END $$"),
    ("long", "SELECT repeat('x', 5000)::int"),
    ("encoding", "SELECT convert_from('\\xff'::bytea, 'UTF8')"),
    ("read only", "SET transaction_read_only = on; CREATE TABLE never ()"),
    ("role", "SET ROLE nobody_at_all"),
]


def error_fields(connection, statement):
    try:
        connection.execute(statement)
    except psycopg.Error as error:
        return diagnostics(error), connection.info.transaction_status.name, connection.execute("SELECT 'usable'").fetchone()


def error_at_bind(connection, statement, parameters):
    try:
        connection.execute(statement, parameters)
    except psycopg.Error as error:
        return diagnostics(error), connection.execute("SELECT 'usable'").fetchone()


family("error", ERRORS, error_fields)
family(
    "error with parameters",
    [
        ("value", "SELECT %s::int", ("x",)),
        ("array", "SELECT %s::int[]", ("{1,",)),
        ("date", "SELECT %s::date", ("2024-02-30",)),
        ("json", "SELECT %s::json", ("{",)),
        ("zero", "SELECT 1 / %s::int", (0,)),
        ("type", "SELECT %s + %s", ("a", "b")),
    ],
    error_at_bind,
)


@check
def too_few_parameters_on_the_wire(connection):
    result = connection.pgconn.exec_params(b"SELECT $1::int + $2::int", [b"1"])
    return result.status, result.error_field(psycopg.pq.DiagnosticField.SQLSTATE), result.error_message


family(
    "notice",
    [(level.lower(), level) for level in ("NOTICE", "WARNING", "INFO", "LOG", "DEBUG")],
    lambda connection, level: notices(connection, level),
)


def notices(connection, level):
    connection.execute("SET client_min_messages = debug1")
    heard = []
    connection.add_notice_handler(lambda d: heard.append((d.severity, d.sqlstate, d.message_primary, d.message_detail, d.message_hint, d.context)))
    connection.execute("SELECT tell(%s)", (level,))
    connection.execute("RESET client_min_messages")
    return [notice for notice in heard if "told" in notice[2]]


# --------------------------------------------------------------------------------------------------- transactions


def status(connection):
    return connection.info.transaction_status.name


@check
def transaction_status(connection):
    connection.autocommit = False
    seen = [status(connection)]
    connection.execute("SELECT 1")
    seen.append(status(connection))
    try:
        connection.execute("SELECT 1/0")
    except psycopg.Error:
        seen.append(status(connection))
    try:
        connection.execute("SELECT 1")
    except psycopg.Error as error:
        seen += [status(connection), diagnostics(error)]
    connection.rollback()
    return seen + [status(connection)]


@check
def savepoints(connection):
    seen = []
    with connection.transaction():
        connection.execute("INSERT INTO part VALUES (1, 1)")
        for statement in ("INSERT INTO part VALUES (2, 2)", "SELECT 1/0", "INSERT INTO part VALUES (1, 1)"):
            try:
                with connection.transaction("inner"):
                    connection.execute(statement)
            except psycopg.Error as error:
                seen.append(error.sqlstate)
            seen.append(status(connection))
        seen.append(connection.execute("SELECT array_agg(id ORDER BY id) FROM part").fetchone())
    connection.execute("DELETE FROM part")
    return seen


@check
def commit_of_a_failed_transaction(connection):
    try:
        connection.execute("BEGIN; SELECT 1/0")
    except psycopg.Error:
        pass
    return connection.execute("COMMIT").statusmessage, status(connection)


@check
def isolation_and_modes(connection):
    connection.autocommit = False
    seen = []
    for level in psycopg.IsolationLevel:
        connection.isolation_level = level
        connection.read_only = True
        seen.append(connection.execute("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')").fetchone())
        connection.rollback()
    return seen


@check
def two_phase_commit(connection):
    try:
        connection.execute("BEGIN; PREPARE TRANSACTION 'matrix'")
    except psycopg.Error as error:
        return diagnostics(error)


@check
def serialization_failure(connection):
    with psycopg.connect(sys.argv[1]) as other:
        connection.autocommit = False
        connection.isolation_level = other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for each in (connection, other):
            each.execute("SELECT count(*) FROM matrix_psycopg.item")
        other.execute("UPDATE matrix_psycopg.item SET word = word WHERE id = 1")
        other.commit()
        try:
            connection.execute("UPDATE item SET word = word WHERE id = 1")
        except psycopg.Error as error:
            return diagnostics(error)


@check
def lock_timeout(connection):
    with psycopg.connect(sys.argv[1]) as other:
        other.execute("LOCK TABLE matrix_psycopg.part")
        connection.execute("SET lock_timeout = '50ms'")
        try:
            connection.execute("SELECT * FROM part")
        except psycopg.Error as error:
            return diagnostics(error), connection.execute("SELECT 'usable'").fetchone()


@check
def statement_timeout(connection):
    connection.execute("SET statement_timeout = '50ms'")
    try:
        connection.execute("SELECT pg_sleep(30)")
    except psycopg.Error as error:
        return diagnostics(error), connection.execute("SELECT 'usable'").fetchone()


@check
def idle_in_transaction_timeout(connection):
    connection.execute("SET idle_in_transaction_session_timeout = '100ms'; BEGIN")
    time.sleep(1)
    try:
        connection.execute("SELECT 1")
    except psycopg.Error as error:
        return error.sqlstate, connection.closed


# ------------------------------------------------------------------------------------------------------ pipelines


@check
def pipeline(connection):
    with connection.pipeline():
        cursors = [connection.execute("SELECT %s::int * 2", (n,)) for n in range(50)]
        return [cursor.fetchone()[0] for cursor in cursors]


@check
def pipeline_with_syncs(connection):
    seen = []
    with connection.pipeline() as pipe:
        for n in range(5):
            cursor = connection.execute("SELECT %s::text", (n,))
            pipe.sync()
            seen.append(cursor)
        return [cursor.fetchone() for cursor in seen]


@check
def pipeline_aborted(connection):
    seen = []
    try:
        with connection.pipeline():
            for statement in ("INSERT INTO part VALUES (5, 5)", "SELECT 1/0", "INSERT INTO part VALUES (6, 6)"):
                connection.execute(statement)
    except psycopg.Error as error:
        seen.append(diagnostics(error))
    return seen, status(connection), connection.execute("SELECT count(*) FROM part").fetchone()


@check
def pipeline_goes_on_after_a_sync(connection):
    with connection.pipeline() as pipe:
        connection.execute("SELECT 1/0")
        try:
            pipe.sync()
        except psycopg.Error as error:
            first = error.sqlstate
        cursor = connection.execute("SELECT 'after'")
        pipe.sync()
        return first, cursor.fetchone()


@check
def pipeline_of_large_values(connection):
    with connection.pipeline():
        cursors = [connection.execute("SELECT length(%s)", ("x" * 100_000,)) for _ in range(20)]
        return [cursor.fetchone()[0] for cursor in cursors]


@check
def pipeline_in_a_transaction(connection):
    with connection.pipeline(), connection.transaction(force_rollback=True):
        cursor = connection.execute("INSERT INTO part VALUES (8, 8) RETURNING id")
        count = connection.execute("SELECT count(*) FROM part")
        return cursor.fetchone(), count.fetchone()


# ----------------------------------------------------------------------------------------------------------- copy

FORMATS = ["", "(FORMAT csv)", "(FORMAT csv, HEADER, DELIMITER ';', QUOTE '''', NULL 'none')", "(FORMAT binary)", "(DELIMITER '|', NULL '-')"]
ROWS = [(1, "plain"), (2, None), (3, "tab\tnew\nline\\ 'q' \"d\""), (4, "ä€😀"), (5, "")]


def copy_both_ways(connection, form):
    connection.execute("DROP TABLE IF EXISTS copied, back; CREATE TEMP TABLE copied (id int, word text)")
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO copied VALUES (%s, %s)", ROWS)
        with cursor.copy(f"COPY copied TO STDOUT {form}") as copy:
            data = b"".join(bytes(block) for block in copy)
        tag = cursor.statusmessage
        cursor.execute("CREATE TEMP TABLE back (LIKE copied)")
        with cursor.copy(f"COPY back FROM STDIN {form}") as copy:
            for start in range(0, len(data), 7):
                copy.write(data[start : start + 7])
        same = cursor.statusmessage
        rows = cursor.execute("SELECT * FROM back ORDER BY id").fetchall()
    return data, tag, same, rows == ROWS


family("copy", [(form or "text", form) for form in FORMATS], copy_both_ways)


@check
def copy_rows_in(connection):
    connection.execute("CREATE TEMP TABLE copied (id int, word text)")
    seen = []
    for form in ("", "(FORMAT binary)"):
        with connection.cursor() as cursor:
            with cursor.copy(f"COPY copied FROM STDIN {form}") as copy:
                copy.set_types(["int4", "text"])
                for row in ROWS:
                    copy.write_row(row)
            seen.append((cursor.statusmessage, cursor.rowcount))
    return seen, connection.execute("SELECT count(*), count(word) FROM copied").fetchone()


@check
def copy_rows_out(connection):
    with connection.cursor() as cursor:
        with cursor.copy("COPY (SELECT id, word, price, seen FROM item ORDER BY id LIMIT 3) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text", "numeric", "timestamptz"])
            return list(copy.rows())


@check
def copy_much(connection):
    connection.execute("CREATE TEMP TABLE much (n int, pad text)")
    with connection.cursor() as cursor:
        with cursor.copy("COPY much FROM STDIN") as copy:
            for n in range(5_000):
                copy.write_row((n, "padding " * 4))
        with cursor.copy("COPY (SELECT * FROM much ORDER BY n) TO STDOUT") as copy:
            size = sum(len(block) for block in copy)
        return cursor.statusmessage, size, connection.execute("SELECT count(*), sum(n) FROM much").fetchone()


@check
def copy_refused_by_the_client(connection):
    try:
        with connection.cursor() as cursor, cursor.copy("COPY part FROM STDIN") as copy:
            copy.write("1\t1\n")
            raise KeyError("changed my mind")
    except KeyError:
        return status(connection), connection.execute("SELECT count(*) FROM part").fetchone()


@check
def copy_refused_by_the_server(connection):
    try:
        with connection.cursor() as cursor, cursor.copy("COPY part FROM STDIN") as copy:
            for n in range(1000):
                copy.write(f"{n}\tword\n")
    except psycopg.Error as error:
        return diagnostics(error), status(connection), connection.execute("SELECT count(*) FROM part").fetchone()


@check
def copy_out_broken_off(connection):
    with psycopg.connect(sys.argv[1], autocommit=True) as other:
        try:
            with other.cursor() as cursor, cursor.copy("COPY (SELECT repeat('x', 100) FROM generate_series(1, 100000)) TO STDOUT") as copy:
                size = len(copy.read())
                raise KeyError("seen enough")
        except KeyError:
            return size, other.execute("SELECT 'usable'").fetchone()


# --------------------------------------------------------------------------------------------------- asynchronous


@check
def notifications(connection):
    connection.execute("LISTEN news; LISTEN other")
    with psycopg.connect(sys.argv[1], autocommit=True) as other:
        other.execute("NOTIFY news, 'one'")
        other.execute("SELECT pg_notify('other', 'ä' || repeat('x', 7000))")
    heard = []
    for notify in connection.notifies(timeout=20, stop_after=2):
        heard.append((notify.channel, notify.payload[:3], len(notify.payload)))
    connection.execute("UNLISTEN *")
    return heard


@check
def notification_to_oneself(connection):
    connection.execute("LISTEN mine")
    with connection.transaction():
        connection.execute("NOTIFY mine, 'a'")
        connection.execute("NOTIFY mine, 'a'")
        connection.execute("NOTIFY mine, 'b'")
    heard = list(connection.notifies(timeout=20, stop_after=2))
    return [(n.channel, n.payload, n.pid == connection.info.backend_pid) for n in heard]


def cancelled(connection, cancel):
    # What runs is asked of the server itself, so that the cancel meets the statement.
    started = threading.Event()

    def when_it_runs():
        with psycopg.connect(sys.argv[1], autocommit=True) as other:
            for _ in range(400):
                running = other.execute("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(90)%'").fetchone()[0]
                if running:
                    break
                time.sleep(0.05)
            started.set()
            cancel()

    thread = threading.Thread(target=when_it_runs)
    thread.start()
    try:
        connection.execute("SELECT pg_sleep(90)")
    except psycopg.Error as error:
        return diagnostics(error)
    finally:
        thread.join()


@check
def cancel(connection):
    return cancelled(connection, connection.cancel), connection.execute("SELECT 'usable'").fetchone()


@check
def cancel_safe(connection):
    return cancelled(connection, connection.cancel_safe), connection.execute("SELECT 'usable'").fetchone()


@check
def cancel_in_a_transaction(connection):
    connection.execute("BEGIN")
    seen = cancelled(connection, connection.cancel_safe), status(connection)
    connection.execute("ROLLBACK")
    return seen, status(connection)


@check
def cancel_of_nothing(connection):
    connection.cancel_safe()
    return connection.execute("SELECT 'usable'").fetchone()


@check
def backend_terminated(connection):
    with psycopg.connect(sys.argv[1], autocommit=True) as other:
        killed = other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,)).fetchone()
    try:
        connection.execute("SELECT 1")
    except psycopg.Error as error:
        return killed, diagnostics(error), connection.closed


@check
def asynchronous_connection(connection):
    async def several():
        async with await psycopg.AsyncConnection.connect(sys.argv[1], autocommit=True) as one:
            async with one.cursor() as cursor:
                await cursor.execute("SELECT %s::int", (5,))
                row = await cursor.fetchone()
            async with one.pipeline():
                rest = [await one.execute("SELECT %s::int", (n,)) for n in range(3)]
                return row, [await each.fetchone() for each in rest]

    return asyncio.run(several())


# -------------------------------------------------------------------------------------------------------- session


@check
def parameters_reported(connection):
    names = (
        "server_version server_encoding client_encoding is_superuser session_authorization DateStyle IntervalStyle TimeZone "
        "integer_datetimes standard_conforming_strings in_hot_standby default_transaction_read_only application_name"
    )
    return {name: connection.info.parameter_status(name) for name in names.split()}


@check
def parameters_change(connection):
    changes = (
        "SET TimeZone = 'Asia/Tokyo'", "SET DateStyle = 'German'", "SET IntervalStyle = 'iso_8601'", "SET application_name = 'matrix'",
        "SET client_encoding = 'LATIN1'", "SET default_transaction_read_only = on", "RESET ALL",
    )
    seen = []
    for change in changes:
        connection.execute(change)
        seen.append([connection.info.parameter_status(name) for name in ("TimeZone", "DateStyle", "IntervalStyle", "application_name", "client_encoding", "default_transaction_read_only")])
    return seen


@check
def parameters_undone_by_a_rollback(connection):
    with connection.transaction(force_rollback=True):
        connection.execute("SET application_name = 'inside'")
        inside = connection.info.parameter_status("application_name")
    return inside, connection.info.parameter_status("application_name")


@check
def start_up_parameters(_):
    options = "-c statement_timeout=12345 -c DateStyle=ISO,DMY"
    with psycopg.connect(sys.argv[1], options=options, application_name="from the start") as other:
        return other.execute("SELECT current_setting('statement_timeout'), current_setting('DateStyle'), current_setting('application_name')").fetchone()


@check
def start_up_search_path(_):
    with psycopg.connect(sys.argv[1], options="-c search_path=matrix_psycopg") as other:
        return other.execute("SELECT count(*) FROM item").fetchone()


@check
def latin1(_):
    with psycopg.connect(sys.argv[1], client_encoding="LATIN1") as other:
        seen = other.execute("SELECT %s, 'ü', length(%s)", ("äöü", "äöü")).fetchone()
        try:
            other.execute("SELECT chr(8364)")
        except psycopg.Error as error:
            return seen, diagnostics(error)


@check
def roles(connection):
    connection.execute("CREATE ROLE matrix_role; SET ROLE matrix_role")
    inside = connection.execute("SELECT current_user, session_user").fetchone()
    connection.execute("RESET ROLE; DROP ROLE matrix_role")
    return inside, connection.execute("SELECT current_user").fetchone()


@check
def temporary_things_and_discard(connection):
    connection.execute("CREATE TEMP TABLE gone (a int); PREPARE p AS SELECT 1; LISTEN x; SET work_mem = '1MB'")
    connection.execute("DISCARD ALL")
    seen = connection.execute("SELECT to_regclass('pg_temp.gone'), (SELECT count(*) FROM pg_prepared_statements), current_setting('work_mem')").fetchone()
    return seen


@check
def advisory_locks(connection):
    with psycopg.connect(sys.argv[1], autocommit=True) as other:
        connection.execute("SELECT pg_advisory_lock(42)")
        before = other.execute("SELECT pg_try_advisory_lock(42)").fetchone()
        connection.execute("SELECT pg_advisory_unlock(42)")
        return before, other.execute("SELECT pg_try_advisory_lock(42)").fetchone()


@check
def large_value(connection):
    text = connection.execute("SELECT repeat('0123456789', 300000)").fetchone()[0]
    return len(text), connection.execute("SELECT md5(%s), length(%b)", (text, text)).fetchone()


@check
def large_result(connection):
    with connection.cursor(binary=True) as cursor:
        cursor.execute("SELECT n, md5(n::text), NULL::int FROM generate_series(1, 20000) AS n")
        rows = cursor.fetchall()
    return len(rows), rows[-1], sum(row[0] for row in rows)


@check
def wide_result(connection):
    row = connection.execute("SELECT " + ", ".join(f"{n} AS c{n}" for n in range(1600))).fetchone()
    return len(row), sum(row)


@check
def large_objects(connection):
    with connection.transaction(force_rollback=True):
        oid = connection.execute("SELECT lo_from_bytea(0, %s)", (b"large" * 1000,)).fetchone()[0]
        return connection.execute("SELECT length(lo_get(%s)), lo_unlink(%s)", (oid, oid)).fetchone()


@check
def explain(connection):
    return connection.execute("EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) SELECT * FROM item WHERE id = 3").fetchall()


@check
def procedures_and_blocks(connection):
    connection.execute("CREATE PROCEDURE twice(INOUT n int) LANGUAGE plpgsql AS $$ BEGIN n := n * 2; COMMIT; END $$")
    return connection.execute("CALL twice(21)").fetchall(), connection.execute("DO 'BEGIN END'").statusmessage


@check
def identifiers_composed(connection):
    name = 'odd "name" ä'
    connection.execute(sql.SQL("CREATE TEMP TABLE {} ({} int)").format(sql.Identifier(name), sql.Identifier("sel ect")))
    cursor = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name)))
    return [column.name for column in cursor.description]


@check
def several_connections_at_once(_):
    seen = []
    with psycopg.connect(sys.argv[1]) as one, psycopg.connect(sys.argv[1]) as two:
        one.execute("CREATE TABLE matrix_psycopg.later (a int)")
        seen.append(two.execute("SELECT to_regclass('matrix_psycopg.later')").fetchone())
        one.commit()
        seen.append(two.execute("SELECT to_regclass('matrix_psycopg.later')::text").fetchone())
    return seen


@check
def wrong_database(_):
    try:
        psycopg.connect(sys.argv[1], dbname="no_such_database")
    except psycopg.Error as error:
        return error.sqlstate, str(error).split("FATAL:")[-1].strip()


def run(name, function, connection):
    try:
        print(f"ok {name}: {function(connection)!r}", flush=True)
    except Exception as error:  # noqa: BLE001: whatever it is, it is what this check saw
        print(f"FAILED {name}: {type(error).__name__} {error}".replace("\n", " "), flush=True)


def connect():
    connection = psycopg.connect(sys.argv[1], autocommit=True)
    connection.execute("SET search_path = matrix_psycopg")
    return connection


def main():
    with psycopg.connect(sys.argv[1], autocommit=True) as connection:
        connection.execute(SETUP)
    with connect() as shared:
        for name, function, clean in CHECKS:
            if clean:
                run(name, function, shared)
            else:
                with connect() as own:
                    run(name, function, own)


main()
