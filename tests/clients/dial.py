"""Opens one socket in the named way and says what came of it. usage: dial.py HOW HOST PORT"""

import socket
import sys

IPPROTO_MPTCP = 262


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def dial(how, host, port):
    if how == "tcp":
        with socket.socket(family(host), socket.SOCK_STREAM) as stream:
            stream.connect((host, port))
            print("connected to", *stream.getpeername()[:2])
    elif how == "mptcp":
        with socket.socket(family(host), socket.SOCK_STREAM, IPPROTO_MPTCP) as stream:
            stream.connect((host, port))
            print("connected")
    elif how == "sctp":
        with socket.socket(family(host), socket.SOCK_STREAM, socket.IPPROTO_SCTP) as stream:
            stream.connect((host, port))
            print("connected")
    elif how == "udp-connect":
        with socket.socket(family(host), socket.SOCK_DGRAM) as datagrams:
            datagrams.connect((host, port))
            print("connected")
    elif how == "udp-send":
        with socket.socket(family(host), socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(b"out", (host, port))
            print("connected")
    elif how == "ping":
        with socket.socket(family(host), socket.SOCK_DGRAM, socket.IPPROTO_ICMP):
            print("connected")
    elif how == "raw":
        with socket.socket(family(host), socket.SOCK_RAW, socket.IPPROTO_RAW):
            print("connected")
    elif how == "packet":
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
            print("connected")
    else:
        raise SystemExit(f"dial.py knows no {how}")


try:
    dial(sys.argv[1], sys.argv[2], int(sys.argv[3]))
except OSError as error:
    print(type(error).__name__, error)
    raise SystemExit(1)
