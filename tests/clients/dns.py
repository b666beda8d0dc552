"""Asks resolvers as programs do, byte for byte, and says what came back. usage: dns.py HOW SERVER NAME [TYPE] [COUNT]

HOW: udp (sendto), udp-connect, tcp, getaddrinfo, garbage. One line for each answer: RCODE ADDRESS... or the error."""

import collections
import socket
import struct
import sys

TYPES = {"A": 1, "TXT": 16, "AAAA": 28, "HTTPS": 65}
CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def query(name, kind, identity=0x5C1C):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    header = struct.pack(">HHHHHH", identity, 0x0120, 1, 0, 0, 1)
    return header + labels + b"\0" + struct.pack(">HH", TYPES[kind], 1) + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def skip_name(message, at):
    while message[at]:
        if message[at] & 0xC0:
            return at + 2
        at += 1 + message[at]
    return at + 1


def understood(message):
    identity, flags, questions, answers = struct.unpack(">HHHH", message[:8])
    assert identity == 0x5C1C, "an answer to another question"
    at = 12
    for _ in range(questions):
        at = skip_name(message, at) + 4
    addresses = []
    for _ in range(answers):
        at = skip_name(message, at)
        _kind, _class, _ttl, length = struct.unpack(">HHIH", message[at : at + 10])
        data = message[at + 10 : at + 10 + length]
        family = socket.AF_INET if length == 4 else socket.AF_INET6
        addresses.append(socket.inet_ntop(family, data))
        at += 10 + length
    return " ".join([CODES.get(flags & 15, str(flags & 15)), *addresses])


def family(server):
    return socket.AF_INET6 if ":" in server else socket.AF_INET


def udp(server, name, kind, connected):
    with socket.socket(family(server), socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(5)
        if connected:
            datagrams.connect((server, 53))
            datagrams.send(query(name, kind))
            peer = datagrams.getpeername()
            answer = datagrams.recv(4096)
        else:
            datagrams.sendto(query(name, kind), (server, 53))
            answer, peer = datagrams.recvfrom(4096)
        assert peer[:2] == (server, 53), f"the answer came from {peer}"
        return understood(answer)


def received(stream, length):
    data = b""
    while len(data) < length:
        more = stream.recv(length - len(data))
        if not more:
            raise ConnectionError("closed")
        data += more
    return data


def tcp(server, name, kind, count):
    with socket.create_connection((server, 53), timeout=5) as stream:
        for _ in range(count):
            asked = query(name, kind)
            stream.sendall(struct.pack(">H", len(asked)) + asked)
            (length,) = struct.unpack(">H", received(stream, 2))
            yield understood(received(stream, length))


def main(how, server, name, kind="A", count="1"):
    if how == "udp":
        answers = [udp(server, name, kind, False) for _ in range(int(count))]
    elif how == "udp-connect":
        answers = [udp(server, name, kind, True)]
    elif how == "tcp":
        answers = list(tcp(server, name, kind, int(count)))
    elif how == "getaddrinfo":
        found = socket.getaddrinfo(name, 5432, type=socket.SOCK_STREAM)
        answers = [entry[4][0] for entry in found]
    elif how == "garbage":
        with socket.socket(family(server), socket.SOCK_DGRAM) as datagrams:
            for size in [0, 1, 11, 12, 512, 5000]:
                datagrams.sendto(b"\xff" * size, (server, 53))
        answers = ["sent"]
    else:
        raise SystemExit(f"dns.py knows no {how}")
    if len(answers) > 10:
        for answer, times in collections.Counter(answers).items():
            print(times, answer)
    else:
        print(*answers, sep="\n")


try:
    main(*sys.argv[1:])
except OSError as error:
    print(type(error).__name__, error)
    raise SystemExit(1)
