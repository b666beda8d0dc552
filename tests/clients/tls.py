"""Drivers with each sslmode. usage: tls.py HOST PORT

PGSSLROOTCERT names the authority that is to be trusted. Prints whether the session came about, and was encrypted.
"""

import asyncio
import os
import sys

import asyncpg
import psycopg

HOST, PORT = sys.argv[1:]


def with_psycopg(mode, **more):
    settings = {"host": HOST, "port": PORT, "user": "postgres", "dbname": "postgres", "sslmode": mode} | more
    with psycopg.connect(**settings, connect_timeout=30) as connection:
        encrypted = connection.pgconn.ssl_in_use
        row = connection.execute("SELECT %s::int + 1", (41,)).fetchone()
        connection.cancel_safe()
        return encrypted, row


def with_asyncpg(mode):
    async def once():
        connection = await asyncpg.connect(host=HOST, port=int(PORT), user="postgres", database="postgres", ssl=mode, timeout=30)
        try:
            encrypted = connection._transport.get_extra_info("ssl_object") is not None
            return encrypted, await connection.fetchval("SELECT $1::int + 1", 41)
        finally:
            await connection.close()

    return asyncio.run(once())


def case(name, function):
    try:
        print(f"ok {name}: {function()}", flush=True)
    except Exception as error:  # noqa: BLE001: whatever it is, it is what this client saw
        print(f"FAILED {name}: {type(error).__name__} {str(error)[:200]}".replace("\n", " "), flush=True)


MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
for mode in MODES:
    case(f"psycopg {mode}", lambda mode=mode: with_psycopg(mode))
for mode in MODES:
    case(f"asyncpg {mode}", lambda mode=mode: with_asyncpg(mode))
for version in ("TLSv1.2", "TLSv1.3"):
    case(f"psycopg {version}", lambda version=version: with_psycopg("verify-full", ssl_min_protocol_version=version, ssl_max_protocol_version=version))
case("psycopg without SNI", lambda: with_psycopg("verify-full", sslsni="0"))


def refused(function):
    try:
        return "not refused", function()
    except psycopg.OperationalError as error:
        return "certificate verify failed" in str(error) or str(error)


case("psycopg that trusts others", lambda: refused(lambda: with_psycopg("verify-full", sslrootcert="/etc/ssl/certs/ca-certificates.crt")))
