"""libpq 18, which psycopg brings along, with the settings that are new in it. usage: libpq18.py HOST PORT [tls]

PGSSLROOTCERT names the authority that is to be trusted.
"""

import sys
import threading
import time

import psycopg

HOST, PORT = sys.argv[1:3]

CASES = {
    "as ever": {"sslmode": "disable"},
    "3.0": {"sslmode": "disable", "max_protocol_version": "3.0"},
    "3.2": {"sslmode": "disable", "min_protocol_version": "3.2", "max_protocol_version": "3.2"},
    "the latest": {"sslmode": "disable", "max_protocol_version": "latest"},
}
if "tls" in sys.argv:
    CASES |= {
        "direct TLS": {"sslnegotiation": "direct", "sslmode": "require"},
        "direct TLS, verified": {"sslnegotiation": "direct", "sslmode": "verify-full"},
        "direct TLS, verified, 3.2": {"sslnegotiation": "direct", "sslmode": "verify-full", "min_protocol_version": "3.2", "max_protocol_version": "3.2"},
        "TLS after asking, verified, 3.2": {"sslmode": "verify-full", "min_protocol_version": "3.2", "max_protocol_version": "3.2"},
    }


def works(settings):
    with psycopg.connect(host=HOST, port=PORT, user="postgres", dbname="postgres", autocommit=True, **settings) as connection:
        seen = [connection.pgconn.ssl_in_use, connection.execute("SELECT %s::int + 1", (41,)).fetchone()]
        with connection.pipeline():
            cursors = [connection.execute("SELECT %b::int", (n,)) for n in range(5)]
            seen.append([cursor.fetchone()[0] for cursor in cursors])
        for cancel in (connection.cancel_safe, connection.cancel):
            timer = threading.Thread(target=lambda cancel=cancel: (time.sleep(1), cancel()))
            timer.start()
            try:
                connection.execute("SELECT pg_sleep(90)")
            except psycopg.Error as error:
                seen.append(error.sqlstate)
            timer.join()
        seen.append(connection.execute("SELECT 'usable'").fetchone())
        return seen


for name, settings in CASES.items():
    try:
        print(f"ok {name}: {works(settings)}", flush=True)
    except psycopg.Error as error:
        print(f"FAILED {name}: {error}".replace("\n", " "), flush=True)
