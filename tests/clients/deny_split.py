"""Sends a recorded conversation again, cut in every way. usage: deny_split.py HOST PORT FILE ["as it is" TIMES]

FILE holds what a client sent, in hexadecimal. First it is sent in one piece a message, for comparison; then
with every message cut behind its first, second, third … byte (what is left of one message and the beginning
of the next travel together), one byte at a time, and all at once. With TIMES it is sent as often, each time as
at first, to see whether what the other side does changes the answer.

Left out of the comparison: each connection's own cancel key, and, if the other side is a server, what else was
notified in the meantime.
"""

import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

HOST, PORT = sys.argv[1], int(sys.argv[2])
# Long enough for the other side to wake up and read; what it reads too late is merely not cut there.
PAUSE = 0.001
AT_ONCE = 8
LEFT_OUT = b"K" if len(sys.argv) > 4 else b"KA"


def messages(conversation):
    """The start-up packet has no type."""
    found = [conversation[: struct.unpack("!i", conversation[:4])[0]]]
    at = len(found[0])
    while at < len(conversation):
        length = 1 + struct.unpack("!i", conversation[at + 1 : at + 5])[0]
        found.append(conversation[at : at + length])
        at += length
    return found


def cut_at(sent, position):
    """Every message in two, where it is long enough."""
    pieces, rest = [], b""
    for message in sent:
        if position < len(message):
            pieces.append(rest + message[:position])
            rest = message[position:]
        else:
            rest += message
    return [*pieces, rest]


def answer(pieces):
    """All that comes back until the other side closes."""
    received = []
    with socket.create_connection((HOST, PORT), timeout=60) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def read():
            while data := stream.recv(65536):
                received.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        for piece in pieces:
            stream.sendall(piece)
            if len(pieces) > 1:
                time.sleep(PAUSE)
        reader.join(60)
        if reader.is_alive():
            return b"".join(received) + b" and then nothing, nor an end"
    return b"".join(received)


def without(left_out, answered):
    kept, at = b"", 0
    while at + 5 <= len(answered):
        length = 1 + struct.unpack("!i", answered[at + 1 : at + 5])[0]
        if answered[at : at + 1] not in left_out:
            kept += answered[at : at + length]
        at += length
    return kept + answered[at:]


def tags(answered):
    found, at = "", 0
    while at + 5 <= len(answered):
        found += chr(answered[at])
        at += 1 + struct.unpack("!i", answered[at + 1 : at + 5])[0]
    return found


def kinds(answered):
    return set(tags(answered))


def main():
    with open(sys.argv[3], encoding="ascii") as file:
        sent = messages(bytes.fromhex(file.read()))
    whole = answer(sent)
    longest = max(len(message) for message in sent)
    if len(sys.argv) > 4:
        ways = {f"time {number}": sent for number in range(int(sys.argv[5]))}
    else:
        ways = {f"cut at {position}": cut_at(sent, position) for position in range(1, longest)}
        ways["byte by byte"] = [bytes([byte]) for byte in b"".join(sent)]
        ways["all at once"] = [b"".join(sent)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(answer, ways.values()))
    different, expected = 0, without(LEFT_OUT, whole)
    for way, answered in zip(ways, answers):
        seen = without(LEFT_OUT, answered)
        if seen != expected:
            different += 1
            at = next((i for i, (a, b) in enumerate(zip(seen, expected)) if a != b), min(len(seen), len(expected)))
            print(f"{way}: differs at byte {at}: {seen[at:][:60]!r} in place of {expected[at:][:60]!r}")
        elif kinds(answered) != kinds(whole):
            different += 1
            print(f"{way}: messages of the types {kinds(answered)} in place of {kinds(whole)}")
    print("answered", tags(without(b"K", whole)))
    print(f"{whole.count(b'*' * 12)} values masked, {whole.count(b'4111111111111111')} in clear")
    said = sorted({chr(message[0]) for message in sent[1:]})
    print(f"{len(sent)} messages ({''.join(said)}), the longest of {longest} bytes, {len(whole)} bytes of answers")
    print(f"{len(ways)} ways, {different} different")


main()
