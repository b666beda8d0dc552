"""A client that speaks the protocol itself, for messages and behaviour that no driver has.

usage: streaming.py HOST PORT USER DATABASE WHAT [ARGUMENT ...]

Prints what it saw, without anything that differs from run to run.
"""

import hashlib
import select
import socket
import struct
import sys
import time

HOST, PORT, USER, DATABASE, WHAT = sys.argv[1:6]
ARGUMENTS = sys.argv[6:]
PATIENCE = 600
CHUNK = 1 << 20


def message(kind, body=b""):
    return kind + struct.pack("!i", len(body) + 4) + body


def query(text):
    return message(b"Q", text.encode() + b"\0")


def parse(text, name=b""):
    return message(b"P", name + b"\0" + text.encode() + b"\0\0\0")


def bind(*values):
    """Of text parameters to the unnamed statement."""
    parts = [struct.pack("!i", len(value)) + value for value in values]
    return message(b"B", b"\0\0\0\0" + struct.pack("!h", len(values)) + b"".join(parts) + b"\0\0")


EXECUTE = message(b"E", b"\0\0\0\0\0")
SYNC = message(b"S")
TERMINATE = message(b"X")


class Closed(Exception):
    """The other side has closed, or reset, the connection."""


class Client:
    def __init__(self):
        self.socket = socket.create_connection((HOST, int(PORT)), PATIENCE)
        self.rest = b""
        parameters = b"user\0%b\0database\0%b\0\0" % (USER.encode(), DATABASE.encode())
        self.send(struct.pack("!ii", len(parameters) + 8, 196608) + parameters)
        self.until(b"Z")

    def send(self, data):
        self.socket.sendall(data)

    def more(self):
        try:
            data = self.socket.recv(CHUNK)
        except ConnectionResetError:
            raise Closed("reset") from None
        if not data:
            raise Closed("closed")
        return data

    def take(self, count):
        parts = [self.rest]
        have = len(self.rest)
        while have < count:
            parts.append(self.more())
            have += len(parts[-1])
        data = b"".join(parts)
        self.rest = data[count:]
        return data[:count]

    def read(self):
        """One whole message."""
        kind, length = struct.unpack("!ci", self.take(5))
        return kind, self.take(length - 4)

    def until(self, *kinds):
        """The messages up to one of these kinds."""
        messages = []
        while not messages or messages[-1][0] not in kinds:
            messages.append(self.read())
        return messages

    def skip(self):
        """Reads a result in which every row is x's, to its end; returns its bytes and the command tag."""
        count = len(self.rest)
        last = self.rest
        while not last.endswith(b"Z\0\0\0\5I"):
            data = self.more()
            count += len(data)
            last = (last + data)[-64:]
        self.rest = b""
        tag = last[last.rindex(b"C\0\0\0") + 5 : -7]
        return count, tag.decode()


def fields(body):
    parts = body.rstrip(b"\0").split(b"\0")
    return {part[:1].decode(): part[1:].decode() for part in parts}


def show(messages):
    for kind, body in messages:
        if kind == b"E":
            error = fields(body)
            print("error", error["S"], error["C"], error["M"])
        elif kind in (b"C", b"Z"):
            print(kind.decode(), body.rstrip(b"\0").decode())
        elif kind == b"D":
            print("row", len(body))
        else:
            print(kind.decode())


def show_to_the_end(client):
    """Every message up to the end of the connection, and which end it is."""
    try:
        while True:
            show([client.read()])
    except Closed as end:
        print(end)


def rows_of_x(count):
    return f"SELECT i, repeat('x', 100) FROM generate_series(1, {count}) AS i"


def rows(count):
    client = Client()
    client.send(query(rows_of_x(count)))
    size, tag = client.skip()
    print(tag, size)


def stall(count, seconds):
    """Stops reading in the middle of a result."""
    client = Client()
    client.send(query(rows_of_x(count)))
    client.take(CHUNK)
    print("stalls", flush=True)
    time.sleep(float(seconds))
    size, tag = client.skip()
    print(tag, size)


def value_out(length):
    client = Client()
    client.send(query(f"SELECT repeat('x', {length})"))
    show(client.until(b"Z"))
    client.send(parse(f"SELECT repeat('y', {length})") + bind() + EXECUTE + SYNC)
    show(client.until(b"Z"))
    client.send(query(f"COPY (SELECT repeat('z', {length})) TO STDOUT"))
    for kind, body in client.until(b"Z"):
        digest = hashlib.sha256(body).hexdigest()[:8] if kind == b"d" else ""
        print(kind.decode(), len(body), digest)


def value_in(length):
    client = Client()
    value = b"v" * int(length)
    client.send(parse("SELECT md5($1::text)") + bind(value) + EXECUTE + SYNC)
    messages = client.until(b"Z")
    show(messages)
    print(messages[2][1][6:].decode() == hashlib.md5(value).hexdigest())
    client.send(query("CREATE TEMP TABLE one (v text)"))
    show(client.until(b"Z"))
    client.send(query("COPY one FROM STDIN"))
    show(client.until(b"G", b"Z"))
    client.send(message(b"d", value + b"\n") + message(b"c"))
    show(client.until(b"Z"))
    client.send(query("SELECT md5(v) FROM one"))
    messages = client.until(b"Z")
    print(messages[1][1][6:].decode() == hashlib.md5(value).hexdigest())


def pipeline(count):
    """Sends until nothing more is taken, and only then begins to read."""
    count = int(count)
    client = Client()
    unsent = memoryview(query("SELECT 1") * count)
    client.socket.setblocking(False)
    quiet = 0
    while unsent and quiet < 3:
        _, writable, _ = select.select([], [client.socket], [], 1)
        quiet = 0 if writable else quiet + 1
        if writable:
            unsent = unsent[client.socket.send(unsent) :]
    print("nothing more is taken", flush=True)
    seen = 0
    data = b""
    while seen < count:
        readable, writable, _ = select.select(
            [client.socket], [client.socket] if unsent else [], [], PATIENCE
        )
        if writable:
            unsent = unsent[client.socket.send(unsent) :]
        if readable:
            data = data[-5:] + client.socket.recv(CHUNK)
            seen += data.count(b"Z\0\0\0\5I")
    print(seen, "answers")


def copy_in(size):
    """COPY data while the server does not read it."""
    client = Client()
    client.send(query("COPY numbers FROM STDIN"))
    show(client.until(b"G", b"Z"))
    print("copies", flush=True)
    line = b"x" * 99 + b"\n"
    part = message(b"d", line * 80) * 128
    sent = 0
    while sent < int(size):
        client.send(part)
        sent += len(part)
    client.send(message(b"c"))
    show(client.until(b"Z"))


def half_close(*texts):
    client = Client()
    client.send(b"".join(query(text) for text in texts))
    client.socket.shutdown(socket.SHUT_WR)
    show_to_the_end(client)


def goodbye(*texts):
    """Says goodbye without waiting for the answers."""
    client = Client()
    client.send(b"".join(query(text) for text in texts) + TERMINATE)
    show_to_the_end(client)


def half_close_and_stall(count, seconds):
    client = Client()
    client.send(query(rows_of_x(count)))
    client.socket.shutdown(socket.SHUT_WR)
    client.take(CHUNK)
    time.sleep(float(seconds))
    size, tag = client.skip()
    print(tag, size)


def reset(text):
    """Leaves in the middle of a statement, with RST."""
    client = Client()
    client.send(query(text))
    print("runs", flush=True)
    sys.stdin.readline()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


def idle():
    """Waits for the end of the session."""
    client = Client()
    print("idle", flush=True)
    show_to_the_end(client)


def idle_many(count):
    clients = [Client() for _ in range(int(count))]
    for client in clients:
        client.send(query("SELECT 1"))
        client.until(b"Z")
    print("idle", flush=True)
    sys.stdin.readline()


def running(text, pipelined=""):
    client = Client()
    client.send(query(text))
    if pipelined:
        time.sleep(0.2)
        client.send(query(pipelined) * 100)
    print("runs", flush=True)
    show_to_the_end(client)


def cut(count):
    """The session ends while nobody reads: what comes is rows, the last one perhaps in part, or else a whole error."""
    client = Client()
    client.send(query(rows_of_x(count)))
    messages = [client.read() for _ in range(1000)]
    print("runs", flush=True)
    sys.stdin.readline()
    try:
        while True:
            messages.append(client.read())
    except Closed:
        kinds = {kind for kind, _ in messages[1:-1]}
        last = messages[-1]
        print("cut", kinds == {b"D"} and (last[0] == b"D" or fields(last[1])["C"] == "57P01"))


def too_long(kind, length):
    """One message of this kind and length, and what comes back."""
    client = Client()
    length = int(length)
    if kind == "copy":
        client.send(query("CREATE TEMP TABLE one (v text)") + query("COPY one FROM STDIN"))
        client.until(b"G")
    data = {
        "query": lambda: query("SELECT '" + "x" * length + "'"),
        "parse": lambda: parse("SELECT '" + "x" * length + "'") + SYNC,
        "bind": lambda: parse("SELECT length($1)") + bind(b"x" * length) + EXECUTE + SYNC,
        "copy": lambda: message(b"d", b"x" * length + b"\n") + message(b"c"),
        "row": lambda: query(f"SELECT repeat('x', {length})"),
        "sync": lambda: message(b"S", b"x" * length),
    }[kind]()
    try:
        client.send(data)
    except (ConnectionResetError, BrokenPipeError):
        pass
    try:
        if kind in ("query", "parse"):
            client.send(query("SELECT 'next'") + TERMINATE)
        else:
            client.socket.shutdown(socket.SHUT_WR)
    except OSError:
        # Closed already, with or without a word.
        pass
    show_to_the_end(client)


globals()[WHAT](*ARGUMENTS)
