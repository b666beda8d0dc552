"""Denied statements in every order psql has; one JSON line each. usage: deny_psql.py HOST PORT WAY

Run as a role that lacks the privilege and as an agent whose policy denies it, the lines must be equal.
psql 15 speaks the simple protocol only: it has no pipeline and no Parse.
"""

import json
import re
import subprocess
import sys

DENIED = "DELETE FROM vault.ledger"
READ = "SELECT n FROM vault.ledger"
NOTE = "INSERT INTO journal VALUES (1, 'noted')"
ROWS = "SELECT n FROM generate_series(1, 5) AS n"
WORDS = ["psql", "-X", "-A", "-t", "-d", f"host={sys.argv[1]} port={sys.argv[2]} user=shop_clerk dbname=shop"]

# Of each line that ends in a semicolon psql says how it ended; \; keeps statements in one message.
ORDERS = {
    "simple": [f"{DENIED};"],
    "read": [f"{READ};"],
    "multi_first": [f"{DENIED} \\; {NOTE};"],
    "multi_middle": [f"{NOTE} \\; {DENIED} \\; {NOTE};"],
    "multi_last": [f"SELECT 1 \\; {NOTE} \\; {DENIED};"],
    "in_a_transaction": ["BEGIN;", f"{NOTE};", f"{DENIED};", "SELECT 'too early';", "COMMIT;"],
    "multi_in_a_transaction": ["BEGIN;", f"{NOTE} \\; {DENIED};", "SELECT 'too early';", "ROLLBACK;"],
    "with_savepoints": [
        "BEGIN;",
        f"{NOTE};",
        "SAVEPOINT here;",
        f"{NOTE};",
        f"{DENIED};",
        "SELECT 'too early';",
        "ROLLBACK TO here;",
        f"{NOTE};",
        "COMMIT;",
    ],
    "with_a_savepoint_for_each": ["\\set ON_ERROR_ROLLBACK on", "BEGIN;", f"{NOTE};", f"{DENIED};", f"{NOTE};", "COMMIT;"],
    "without_autocommit": ["\\set AUTOCOMMIT off", f"{NOTE};", f"{DENIED};", "COMMIT;", "\\set AUTOCOMMIT on"],
    "in_a_portal": ["\\set FETCH_COUNT 2", f"{READ};", "\\set FETCH_COUNT 0"],
    "beside_a_suspended_portal": [
        "BEGIN;",
        f"DECLARE k CURSOR FOR {ROWS};",
        "FETCH 2 FROM k;",
        f"{DENIED};",
        "FETCH 2 FROM k;",
        "ROLLBACK;",
    ],
    "beside_a_suspended_portal_with_a_savepoint": [
        "BEGIN;",
        f"DECLARE k CURSOR FOR {ROWS};",
        "FETCH 2 FROM k;",
        "SAVEPOINT here;",
        f"{DENIED};",
        "ROLLBACK TO here;",
        "FETCH 2 FROM k;",
        "COMMIT;",
    ],
    "copy_out": ["COPY vault.ledger TO STDOUT;"],
    "copy_out_by_psql": ["\\copy vault.ledger to /dev/null"],
    "copy_in_by_psql": ["\\copy vault.ledger from /dev/null"],
    "copy_in_a_transaction": ["BEGIN;", f"{NOTE};", "COPY vault.ledger TO STDOUT;", "SELECT 'too early';", "COMMIT;"],
    "prepared_in_sql": [f"PREPARE s AS {DENIED};", "EXECUTE s;"],
    "described": [f"{READ} \\gdesc"],
}

# What psql reads the data of a COPY from is its own input here.
COMMANDS = {
    "copy_in": (["-c", "COPY vault.ledger FROM STDIN"], "6\n"),
    "copy_and_delete": (["-c", f"COPY journal FROM STDIN; {DENIED}"], "1\tcopied\n2\tcopied\n"),
    "delete_and_copy": (["-c", f"{DENIED}; COPY journal FROM STDIN"], ""),
    "one_transaction": (["-1", "-c", NOTE, "-c", DENIED, "-c", NOTE], ""),
    "several_commands": (["-c", NOTE, "-c", DENIED, "-c", NOTE], ""),
}


def psql(arguments, script):
    ended = subprocess.run(WORDS + arguments, input=script, capture_output=True, text=True, timeout=60)
    return [f"exit {ended.returncode}", *ended.stdout.splitlines(), *ended.stderr.splitlines()]


def scripted(lines):
    script = ["\\set VERBOSITY sqlstate"]
    for line in lines:
        script.append(line)
        if line.endswith((";", "\\gdesc")) or line.startswith("\\copy"):
            script.append("\\echo :ERROR :SQLSTATE :ROW_COUNT")
            script.append("\\echo said :ERROR :SQLSTATE :LAST_ERROR_MESSAGE")
    script += ["SELECT 'next';", "\\echo last :LAST_ERROR_SQLSTATE"]
    seen = psql([], "\n".join(script) + "\n")
    denied = "said true 42501 "
    messages = [word.removeprefix(denied) for word in seen if word.startswith(denied)]
    return [word for word in seen if not word.startswith("said ")], messages


def commanded(arguments, data):
    """An error's first line has all that counts; what stands behind it differs."""
    seen, messages = [], []
    for word in psql(["-v", "VERBOSITY=verbose", *arguments], data):
        error = re.match("([A-Z]+):  ([0-9A-Z]{5}): (.*)", word)
        if error:
            seen.append(f"{error[1]}:  {error[2]}")
            messages += [error[3]] if error[2] == "42501" else []
        elif not re.match("[A-Z]+( [0-9]+)?: | +\\^", word):
            seen.append(word)
    return seen + psql(["-c", "SELECT 'next'"], ""), messages


def rows():
    """How many there are: standard output alone, behind the exit code."""
    counted = psql(["-F", " ", "-c", "SELECT (SELECT count(*) FROM journal), (SELECT count(*) FROM orders)"], "")
    return [int(count) for count in counted[1].split()]


def shown(order, before, seen, messages):
    change = [after - then for after, then in zip(rows(), before)]
    seen.append(f"journal {change[0]:+}, orders {change[1]:+}")
    print(json.dumps({"order": order, "seen": seen, "messages": messages}), flush=True)


for order, lines in ORDERS.items():
    shown(order, rows(), *scripted(lines))
for order, (arguments, data) in COMMANDS.items():
    shown(order, rows(), *commanded(arguments, data))
