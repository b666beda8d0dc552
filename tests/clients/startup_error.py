"""Connects as a client would and prints the fields of the error that it gets, a line each.

startup_error.py HOST PORT [NAME VALUE]...
"""

import socket
import struct
import sys

host, port, *parameters = sys.argv[1:]
parameters = parameters or ["user", "me", "database", "shop"]
body = struct.pack("!i", 196608) + b"".join(word.encode() + b"\0" for word in parameters) + b"\0"
gateway = socket.create_connection((host, int(port)), timeout=60)
gateway.sendall(struct.pack("!i", len(body) + 4) + body)
answer = b""
while part := gateway.recv(65536):
    answer += part
    if answer[:1] == b"R":
        sys.exit("let in")
kind, length = answer[:1], struct.unpack("!i", answer[1:5])[0]
assert kind == b"E" and length + 1 == len(answer), answer
for field in answer[5:].split(b"\0"):
    if field:
        print(chr(field[0]), field[1:].decode())
