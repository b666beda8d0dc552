"""Does what the kernel denies, a number of times each, and prints when it was done with it.

usage: denied.py DATAGRAMS CONNECTS
"""

import errno
import socket
import sys
import time


def denied(attempt):
    try:
        attempt()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return
        raise
    raise SystemExit("it was not denied")


datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[1])):
    denied(lambda: datagrams.sendto(b"out", ("192.0.2.1", 4242)))
for _ in range(int(sys.argv[2])):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        denied(lambda: stream.connect(("169.254.169.254", 80)))
print(time.time_ns() // 1000)
