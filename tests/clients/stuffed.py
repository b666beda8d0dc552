"""Bytes stuffed behind a request for encryption must not be taken for the session's (CVE-2021-23214).

usage: stuffed.py HOST PORT. Prints for each case whether the server served or refused it.
"""

import socket
import ssl
import struct
import sys

SSL, GSS, CANCEL = (struct.pack("!II", 8, code) for code in (80877103, 80877104, 80877102))


def message(kind, body):
    return kind + struct.pack("!I", len(body) + 4) + body


PARAMETERS = b"user\0postgres\0database\0postgres\0\0"
STARTUP = struct.pack("!II", len(PARAMETERS) + 8, 196608) + PARAMETERS
QUERY = message(b"Q", b"SELECT 'served'\0")


# How long a server may be silent that ought to refuse; one that serves is waited for.
SILENCE = 6
PATIENCE = 90


def dial(stuffed):
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=PATIENCE)
    connection.settimeout(SILENCE if stuffed else PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answer(connection):
    """Everything until the server closes or has served."""
    seen = b""
    try:
        while b"served" not in seen:
            block = connection.recv(65536)
            if not block:
                break
            seen += block
    except (OSError, ssl.SSLError):
        pass
    return "served" if b"served" in seen else "refused"


def plain(*blocks):
    with dial(stuffed=len(blocks) > 2) as connection:
        connection.sendall(b"".join(blocks))
        return answer(connection)


def through_tls(stuffed):
    """The handshake takes place; what was stuffed must not be read behind it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with dial(stuffed) as connection:
        connection.sendall(SSL + stuffed)
        if connection.recv(1) != b"S":
            return "refused"
        try:
            with context.wrap_socket(connection) as wrapped:
                wrapped.sendall(STARTUP + QUERY)
                return answer(wrapped)
        except (OSError, ssl.SSLError):
            return "refused"


CASES = {
    "nothing stuffed, no encryption asked for": lambda: plain(STARTUP, QUERY),
    "nothing stuffed, through TLS": lambda: through_tls(b""),
    "a session behind SSLRequest": lambda: plain(SSL, STARTUP, QUERY),
    "a session behind SSLRequest, then TLS": lambda: through_tls(STARTUP + QUERY),
    "a query behind SSLRequest, then TLS": lambda: through_tls(QUERY),
    "one byte behind SSLRequest, then TLS": lambda: through_tls(b"Q"),
    "a session behind GSSENCRequest": lambda: plain(GSS, STARTUP, QUERY),
    "SSLRequest twice": lambda: plain(SSL, SSL, STARTUP, QUERY),
    "GSSENCRequest, then SSLRequest, at once": lambda: plain(GSS, SSL, STARTUP, QUERY),
    "a session behind SSLRequest and a byte": lambda: plain(SSL, b"\0", STARTUP, QUERY),
}

for name, case in CASES.items():
    print(f"ok {name}: {case()}", flush=True)
