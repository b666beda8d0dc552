"""Ctrl-C in psql, at a terminal. usage: interrupt.py PSQL

Each case sends something that takes long, waits until the server works at it, and presses Ctrl-C. Prints one line for
each: what of the expected came, in order.
"""

import os
import pty
import select
import subprocess
import sys
import time

PSQL = sys.argv[1]
CANCELLED = "canceling statement due to user request"
PATIENCE = 60

CASES = {
    "a sleep": ([], "SELECT pg_sleep(90);", "pg_sleep(90)", [CANCELLED], "=#"),
    "in a transaction": (["BEGIN;"], "SELECT pg_sleep(90);", "pg_sleep(90)", [CANCELLED], "=!#"),
    "the second of several": ([], r"SELECT 'first' \; SELECT pg_sleep(90) \; SELECT 'third';", "pg_sleep(90)", [], "=#"),
    "rows without end": ([], "SELECT n, pg_sleep(0.001) FROM generate_series(1, 1000000000) AS n;", "pg_sleep(0.001)", [CANCELLED], "=#"),
    "a copy without end": ([r"\o /dev/null"], "COPY (SELECT generate_series(1, 1000000000)) TO STDOUT;", "COPY", [CANCELLED], "=#"),
    "a copy from the terminal": (["CREATE TEMP TABLE t (a int);"], "COPY t FROM STDIN;", None, ["COPY from stdin failed"], "=#"),
    "a procedure": ([], "DO $$ BEGIN LOOP PERFORM pg_sleep(0.1); END LOOP; END $$;", "PERFORM", [CANCELLED], "=#"),
    "at the prompt": ([], None, None, [], "=#"),
}


class Terminal:
    def __init__(self):
        self.seen = ""
        self.child, self.fd = pty.fork()
        if self.child == 0:
            os.environ.update(TERM="dumb", PSQL_HISTORY="/dev/null", PAGER="cat")
            os.execvp(PSQL, [PSQL, "-X", "-n"])

    def send(self, text):
        os.write(self.fd, text.encode())

    def expect(self, text, patience=PATIENCE):
        """Reads on until the text has come, and forgets what came before it."""
        end = time.monotonic() + patience
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no {text!r} after {self.seen[-500:]!r}")
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]
        return text

    def press_until(self, text):
        """Ctrl-C; again if nothing comes of it, because psql does not listen between its prompt and the input."""
        for _ in range(20):
            self.send("\x03")
            try:
                self.expect(text, 3)
                return
            except TimeoutError:
                pass
        raise TimeoutError(f"no {text!r} however often Ctrl-C was pressed")

    def line(self, text):
        self.expect("# ")
        self.send(text + "\n")
        # The terminal's echo is not the answer.
        self.expect("\n")


def wait_until_it_runs(part):
    question = f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() AND query LIKE '%{part}%'"
    for _ in range(200):
        answer = subprocess.run([PSQL, "-XAtc", question], capture_output=True, text=True, check=True)
        if answer.stdout.strip() != "0":
            return
        time.sleep(0.1)
    raise TimeoutError(f"the server does not work at {part!r}")


def case(before, statement, part, expected, prompt):
    terminal = Terminal()
    for line in before:
        terminal.line(line)
    seen = []
    if statement:
        terminal.line(statement)
        if part:
            wait_until_it_runs(part)
        else:
            terminal.expect(">> ")
    else:
        terminal.expect("# ")
    if part:
        terminal.press_until("Cancel request sent")
        seen.append("cancelled by psql")
    elif statement:
        # Between its prompt and its reading psql would ask the server to cancel, which a COPY that waits for data
        # does not hear.
        time.sleep(0.5)
        terminal.press_until(expected[0])
        seen.append(expected.pop(0))
    else:
        terminal.press_until(prompt)
    seen += [terminal.expect(text) for text in expected]
    if statement:
        seen.append(terminal.expect(prompt))
    terminal.send(r"\o" + "\n")
    terminal.send("ROLLBACK;\n")
    terminal.expect("ROLLBACK")
    terminal.send("SELECT 'us' || 'able';\n")
    seen.append(terminal.expect("usable"))
    terminal.send("\\q\n")
    os.waitpid(terminal.child, 0)
    os.close(terminal.fd)
    return seen


for name, arguments in CASES.items():
    try:
        print(f"ok {name}: {case(*arguments)}", flush=True)
    except (TimeoutError, OSError, subprocess.SubprocessError) as error:
        print(f"FAILED {name}: {error}".replace("\n", " "), flush=True)
