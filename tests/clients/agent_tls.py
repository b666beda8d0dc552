"""Speaks the start of PostgreSQL's protocol by hand, in TLS and out of it, and prints what comes back.

usage: agent_tls.py CASE HOST PORT ROLE DATABASE [ARGUMENT...]
"""

import base64
import hashlib
import hmac
import os
import socket
import ssl
import struct
import sys

CASE, HOST, PORT, ROLE, DATABASE = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
ARGUMENTS = sys.argv[6:]
# Resolved once: an agent may ask only so much in a second.
ADDRESS = socket.getaddrinfo(HOST, PORT, socket.AF_INET, socket.SOCK_STREAM)[0][4]
SSL, GSS, CANCEL = 80877103, 80877104, 80877102


def packet(code, body=b""):
    return struct.pack("!iI", len(body) + 8, code) + body


def message(kind, body=b""):
    return kind + struct.pack("!i", len(body) + 4) + body


def startup(version=(3, 0), *options):
    pairs = [("user", ROLE), ("database", DATABASE), *options]
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in pairs) + b"\0"
    return packet(version[0] << 16 | version[1], body)


def connect():
    return socket.create_connection(ADDRESS, timeout=30)


def ask(stream, code):
    stream.sendall(packet(code))
    return stream.recv(1).decode()


def context(alpn=("postgresql",), certificate=None):
    made = ssl.create_default_context(cafile=os.environ["PGSSLROOTCERT"])
    if alpn:
        made.set_alpn_protocols(list(alpn))
    if certificate:
        made.load_cert_chain(certificate)
    return made


def tls(stream, **how):
    return context(**how).wrap_socket(stream, server_hostname=HOST)


def encrypted(**how):
    stream = connect()
    assert ask(stream, SSL) == "S"
    return tls(stream, **how)


def exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def read(stream):
    kind, length = struct.unpack("!ci", exactly(stream, 5))
    return kind.decode(), exactly(stream, length - 4)


def fields(body):
    return {part[:1].decode(): part[1:].decode() for part in body.split(b"\0") if part}


def error(body):
    said = fields(body)
    return f"{said['S']} {said['C']} {said['M']}"


def until_ready(stream):
    """Everything up to ReadyForQuery or an error: [(kind, body)]."""
    heard = []
    while True:
        kind, body = read(stream)
        heard.append((kind, body))
        if kind in "ZE":
            return heard


def outcome(stream):
    """One line about how a start went."""
    try:
        heard = until_ready(stream)
    except (EOFError, ssl.SSLEOFError, ConnectionResetError):
        return "closed"
    kind, body = heard[-1]
    return error(body) if kind == "E" else "ready"


def close(stream):
    stream.sendall(message(b"X"))
    try:
        while stream.recv(4096):
            pass
    except OSError:
        pass
    stream.close()


def handshake(alpn, direct):
    stream = connect()
    if not direct:
        assert ask(stream, SSL) == "S"
    try:
        return tls(stream, alpn=alpn)
    except (ssl.SSLError, ConnectionResetError) as failure:
        return str(failure).split("] ")[-1].split(" (")[0]


def encryption():
    for name, alpn, direct in [
        ("requested, no ALPN", (), False),
        ("requested, ALPN", ("postgresql",), False),
        ("requested, ALPN of several", ("h2", "postgresql"), False),
        ("requested, another ALPN", ("h2",), False),
        ("direct, ALPN", ("postgresql",), True),
        ("direct, no ALPN", (), True),
        ("direct, another ALPN", ("h2",), True),
    ]:
        stream = handshake(alpn, direct)
        if isinstance(stream, str):
            print(f"{name}: {stream}")
            continue
        stream.sendall(startup())
        print(f"{name}: {stream.selected_alpn_protocol()} {outcome(stream)}")
        close(stream)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        only = context()
        only.minimum_version = only.maximum_version = version
        stream = connect()
        assert ask(stream, SSL) == "S"
        stream = only.wrap_socket(stream, server_hostname=HOST)
        stream.sendall(startup())
        print(f"{stream.version()}: {outcome(stream)} resumed {stream.session_reused}")
        close(stream)


def requests():
    stream = connect()
    print("GSS, SSL, start:", ask(stream, GSS), ask(stream, SSL), end=" ")
    stream = tls(stream)
    stream.sendall(startup())
    print(outcome(stream))
    close(stream)
    for name, before, inside, last in [
        ("GSS twice", [GSS], False, packet(GSS)),
        ("SSL inside TLS", [], True, packet(SSL)),
        ("GSS inside TLS", [], True, packet(GSS)),
        ("version 2", [], False, packet(2 << 16, b"x" * 288)),
        ("version 4", [], True, startup((4, 0))),
    ]:
        stream = connect()
        for code in before:
            ask(stream, code)
        if inside:
            ask(stream, SSL)
            stream = tls(stream)
        stream.sendall(last)
        print(f"{name}: {outcome(stream)}")
    for name, code in (("SSL", SSL), ("GSS", GSS)):
        stream = connect()
        stream.sendall(packet(code) + startup())
        print(f"bytes behind {name}: {outcome(stream)}")
    stream = connect()
    ask(stream, SSL)
    stream.sendall(packet(SSL) + startup())
    # An alert is not a message: all that counts is that it is no session.
    rest = b""
    try:
        while more := stream.recv(4096):
            rest += more
    except ConnectionResetError:
        pass
    print("SSL twice:", "closed" if not rest or rest[:1] == b"\x15" else rest)


def negotiation():
    for version, options in [
        ((3, 0), []),
        ((3, 1), []),
        ((3, 2), []),
        ((3, 3), []),
        ((3, 9999), []),
        ((3, 0), [("_pq_.one", "1"), ("_pq_.two", "on")]),
        ((3, 1), [("_pq_.one", "1")]),
        ((3, 2), [("_pq_.one", "1")]),
        ((3, 4), [("_pq_.one", "1")]),
    ]:
        stream = connect()
        stream.sendall(startup(version, *options))
        heard = until_ready(stream)
        line = f"{version[0]}.{version[1]} {len(options)}:"
        for at, (kind, body) in enumerate(heard):
            if kind == "v":
                spoken, count = struct.unpack("!II", body[:8])
                names = body[8:].split(b"\0")[:-1]
                assert at == 0 and len(names) == count, body
                line += f" v {spoken >> 16}.{spoken & 0xFFFF} {b','.join(names).decode()}".rstrip()
            if kind == "K":
                line += f" key {len(body) - 4}"
        print(line)
        close(stream)


def key_of(heard):
    return next(body for kind, body in heard if kind == "K")


def cancel_with(key, how):
    stream = connect()
    if how == "tls":
        assert ask(stream, SSL) == "S"
        stream = tls(stream)
    if how == "direct":
        stream = tls(stream)
    stream.sendall(packet(CANCEL, key))
    answer = b""
    try:
        while more := stream.recv(64):
            answer += more
    except (ConnectionResetError, ssl.SSLEOFError):
        pass
    assert answer == b"", answer


def cancel():
    for version, how in [((3, 0), "plain"), ((3, 2), "plain"), ((3, 2), "tls"), ((3, 2), "direct")]:
        stream = encrypted()
        stream.sendall(startup(version))
        key = key_of(until_ready(stream))
        stream.sendall(message(b"Q", b"DO $$ BEGIN RAISE NOTICE 'it runs'; PERFORM pg_sleep(60); END $$\0"))
        assert read(stream)[0] == "N"
        wrong = key[:-1] + bytes([key[-1] ^ 1])
        for forged in (wrong, key[:8], key + b"\0", key[:4] + os.urandom(256), key[:4] + bytes(32)):
            if forged != key:
                cancel_with(forged, how)
        cancel_with(key, how)
        heard = until_ready(stream)
        print(f"{version[0]}.{version[1]} {how}, {len(key) - 4} bytes: {error(heard[-1][1])}")
        assert until_ready(stream)[-1] == ("Z", b"I")
        close(stream)


def hold():
    """Prints its cancel key, runs a statement, and says how it ended."""
    stream = connect()
    stream.sendall(startup((3, 2)))
    print(key_of(until_ready(stream)).hex(), flush=True)
    stream.sendall(message(b"Q", b"SELECT pg_sleep(5)\0"))
    print(outcome(stream), flush=True)
    close(stream)


def steal():
    """Sends a cancel request with somebody else's key."""
    cancel_with(bytes.fromhex(ARGUMENTS[0]), "plain")


def flood():
    """More cancel requests than anybody needs."""
    for _ in range(int(ARGUMENTS[0])):
        cancel_with(bytes(8), "plain")


def leave():
    """Leaves as soon as it is let in, as a client does that requires SCRAM and is not asked."""
    stream = encrypted()
    stream.sendall(startup())
    print(outcome(stream))
    stream.close()


def leave_after_tls():
    encrypted().close()


def certificate():
    stream = encrypted(certificate=ARGUMENTS[0])
    stream.sendall(startup())
    print(outcome(stream))
    close(stream)


def names():
    """The certificate's names for what SNI says."""
    for asked_for in ARGUMENTS:
        stream = connect()
        assert ask(stream, SSL) == "S"
        lenient = context()
        lenient.check_hostname = False
        stream = lenient.wrap_socket(stream, server_hostname=asked_for)
        found = stream.getpeercert()
        hours = (ssl.cert_time_to_seconds(found["notAfter"]) - ssl.cert_time_to_seconds(found["notBefore"])) / 3600
        print(asked_for, "→", " ".join(name for _, name in found["subjectAltName"]), f"{hours:g} h")
        stream.close()


def scram():
    """ARGUMENTS: MECHANISM FLAG PASSWORD. FLAG is n, y, p, or x: bound to another certificate."""
    mechanism, flag, password = ARGUMENTS
    stream = connect() if mechanism == "no-tls" else encrypted()
    mechanism = "SCRAM-SHA-256" if mechanism == "no-tls" else mechanism
    stream.sendall(startup((3, 3)))
    kind, body = read(stream)
    assert kind == "v", kind
    kind, body = read(stream)
    assert kind == "R" and body[:4] == b"\0\0\0\x0a", (kind, body)
    print("offered", body[4:].strip(b"\0").replace(b"\0", b" ").decode())
    header = {"n": "n,,", "y": "y,,"}.get(flag, "p=tls-server-end-point,,")
    bound = header.encode()
    if flag in "px":
        shown = stream.getpeercert(binary_form=True)
        bound += hashlib.sha256(shown if flag == "p" else b"another").digest()
    bare = "n=,r=" + base64.b64encode(os.urandom(18)).decode()
    first = (header + bare).encode()
    stream.sendall(message(b"p", mechanism.encode() + b"\0" + struct.pack("!i", len(first)) + first))
    kind, body = read(stream)
    if kind == "E":
        return print(error(body))
    server_first = body[4:].decode()
    said = dict(part.split("=", 1) for part in server_first.split(","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(said["s"]), int(said["i"]))
    unproven = f"c={base64.b64encode(bound).decode()},r={said['r']}"
    everything = f"{bare},{server_first},{unproven}".encode()

    def sign(key, text):
        return hmac.digest(key, text, "sha256")

    client_key = sign(salted, b"Client Key")
    signature = sign(hashlib.sha256(client_key).digest(), everything)
    proof = bytes(a ^ b for a, b in zip(client_key, signature))
    stream.sendall(message(b"p", f"{unproven},p={base64.b64encode(proof).decode()}".encode()))
    kind, body = read(stream)
    if kind == "E":
        return print(error(body))
    server = base64.b64encode(sign(sign(salted, b"Server Key"), everything))
    assert kind == "R" and body == b"\0\0\0\x0cv=" + server, body
    print(outcome(stream))
    close(stream)


globals()[CASE.replace("-", "_")]()
