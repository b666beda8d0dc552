"""A newer libpq than psql's: direct TLS, required logins, client certificates, protocol 3.2, cancelling inside TLS.

usage: agent_tls_libpq.py CONNINFO PASSWORD CERTIFICATE KEY
"""

import sys
import threading
import time

import psycopg
from psycopg import pq

CONNINFO, PASSWORD, CERTIFICATE, KEY = sys.argv[1:]
assert pq.version() >= 170000, pq.version()

for words in (
    "sslnegotiation=direct",
    "sslnegotiation=postgres",
    "require_auth=scram-sha-256 channel_binding=require",
    "require_auth=scram-sha-256 sslnegotiation=direct",
    "require_auth=none",
    "sslcertmode=require",
    "sslcertmode=allow sslnegotiation=direct",
    "sslcertmode=disable",
    "gssencmode=prefer",
):
    conninfo = f"{CONNINFO} {words} sslmode=verify-full password={PASSWORD}"
    if "sslcertmode" in words:
        conninfo += f" sslcert={CERTIFICATE} sslkey={KEY}"
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            print(f"{words}:", connection.execute("SELECT 'let in'").fetchone()[0])
    except psycopg.OperationalError as error:
        print(f"{words}:", "authentication method" if "authentication method" in str(error) else error)


def cancelled(words):
    """Cancels again and again: the statement may not have begun yet."""
    conninfo = f"{CONNINFO} {words} sslmode=verify-full password={PASSWORD}"
    with psycopg.connect(conninfo, autocommit=True) as connection:
        over = threading.Event()

        def cancel():
            while not over.wait(0.5):
                connection.cancel_safe(timeout=30)

        canceller = threading.Thread(target=cancel)
        canceller.start()
        began = time.monotonic()
        try:
            connection.execute("SELECT pg_sleep(120)")
            return "not cancelled"
        except psycopg.errors.QueryCanceled as error:
            return f"cancelled {error.sqlstate}" if time.monotonic() - began < 120 else "too late"
        finally:
            over.set()
            canceller.join()


for words in ("sslnegotiation=postgres", "sslnegotiation=direct"):
    print(f"{words}:", cancelled(words))
if pq.version() >= 180000:
    newest = "max_protocol_version=latest"
    print(f"{newest}:", cancelled(newest))
