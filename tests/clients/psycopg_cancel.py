"""Cancels a running statement. usage: psycopg_cancel.py CONNINFO"""

import sys
import threading

import psycopg

with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    timer = threading.Timer(1, connection.cancel_safe)
    timer.start()
    try:
        connection.execute("SELECT pg_sleep(60)")
    except psycopg.errors.QueryCanceled as error:
        print("cancelled", error.sqlstate)
    timer.join()
    print("usable", *connection.execute("SELECT 42").fetchone())
