"""Opens connections one after the other, from several threads, and counts what goes wrong. Every fourth thread
runs whole sessions, the others only ask for TLS and leave: that is much cheaper, and answered as well.

usage: connects.py THREADS SECONDS HOST...:PORT
"""

import collections
import socket
import struct
import sys
import threading
import time


def message(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


def startup():
    body = struct.pack("!i", 196608) + b"user\0shop_app\0database\0shop\0\0"
    return struct.pack("!i", len(body) + 4) + body


class Closed(Exception):
    pass


def until_ready(stream):
    """Reads up to ReadyForQuery; an error of the server is one."""
    buffer = b""
    while True:
        while len(buffer) >= 5:
            length = 1 + struct.unpack("!i", buffer[1:5])[0]
            if len(buffer) < length:
                break
            whole, buffer = buffer[:length], buffer[length:]
            if whole[:1] == b"E":
                raise Closed(whole[5:].replace(b"\0", b" ").decode(errors="replace"))
            if whole[:1] == b"Z":
                return
        data = stream.recv(65536)
        if not data:
            raise Closed("closed without a word")
        buffer += data


def question(host, port):
    with socket.create_connection((host, port), timeout=30) as stream:
        connected = time.monotonic()
        stream.sendall(struct.pack("!ii", 8, 80877103))
        answer = stream.recv(16)
        if answer != b"S":
            raise Closed(f"answered {answer!r}")
    return connected


def session(host, port):
    with socket.create_connection((host, port), timeout=30) as stream:
        connected = time.monotonic()
        stream.sendall(startup())
        until_ready(stream)
        stream.sendall(message(b"Q", b"SELECT 1\0"))
        until_ready(stream)
        stream.sendall(message(b"X", b""))
    return connected


def main():
    threads, seconds = int(sys.argv[1]), float(sys.argv[2])
    hosts, port = sys.argv[3].rsplit(":", 1)
    hosts = hosts.split(",")
    end = time.monotonic() + seconds
    lock = threading.Lock()
    done, failed, slowest = collections.Counter(), collections.Counter(), [0.0, 0.0]

    def run(number):
        count = number
        what = session if number % 4 == 0 else question
        while time.monotonic() < end:
            started = time.monotonic()
            count += 1
            try:
                connected = what(hosts[count % len(hosts)], int(port))
            except (OSError, Closed) as error:
                with lock:
                    failed[f"{type(error).__name__}: {error}"] += 1
                continue
            now = time.monotonic()
            with lock:
                done[what] += 1
                slowest[0] = max(slowest[0], connected - started)
                slowest[1] = max(slowest[1], now - started)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for error, count in failed.items():
        print(f"failed {count} x {error}")
    print(f"sessions {done[session]}")
    print(f"questions {done[question]}")
    print(f"slowest connect {slowest[0] * 1000:.0f} ms, slowest answer {slowest[1] * 1000:.0f} ms")


main()
