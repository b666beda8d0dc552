"""Connects when told on standard input, and ends; a child it leaves behind asks for a session.

usage: orphan.py HOST PORT
"""

import os
import socket
import struct
import sys

print("ready", flush=True)
sys.stdin.readline()
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])))
if os.fork():
    os._exit(0)
stream.settimeout(20)
parameters = struct.pack("!i", 196608) + b"user\0orphan\0database\0shop\0\0"
stream.sendall(struct.pack("!i", len(parameters) + 4) + parameters)
print(stream.recv(65536).decode(errors="replace"), flush=True)
