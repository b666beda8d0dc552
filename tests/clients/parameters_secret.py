"""Card numbers as parameters of many kinds. usage: parameters_secret.py HOST PORT"""

import struct
import sys

from parameters import Connection, message, run, text

CARD = 4111111111111111
INT8 = struct.pack("!q", CARD)
NUMERIC = struct.pack("!hhHH4H", 4, 3, 0, 0, 4111, 1111, 1111, 1111)


def array(oid, *values):
    head = struct.pack("!iiIii", 1, 0, oid, len(values), 1)
    return head + b"".join(struct.pack("!i", len(value)) + value for value in values)


def main():
    connection = Connection(sys.argv[1], int(sys.argv[2]))
    card = str(CARD).encode()
    # A masked column: everything is withheld.
    masked = "UPDATE customers SET card_number = $1 WHERE id = $2"
    for values, parameter_format in (([card, b"1"], 0), ([b"4222222222222", struct.pack("!i", 1)], 1)):
        connection.ask(run(masked, values, [25, 23], parameter_format))
    # No masked column, and card numbers all the same.
    for oid, parameter_format, value in (
        (25, 0, b"pay 4111-1111-1111-1111 now"),
        (25, 1, b"pay 4111 1111 1111 1111 now"),
        (20, 1, INT8),
        (20, 0, card),
        (1700, 1, NUMERIC),
        (3802, 1, b'\x01{"card": "' + card + b'"}'),
        (1009, 1, array(25, b"free", card)),
        (1016, 1, array(20, struct.pack("!q", 1), INT8)),
        (17, 1, card),
        (0, 0, card),
        (25, 0, b"nothing of the kind"),
    ):
        connection.ask(run("SELECT 1 WHERE $1 IS NULL", [value], [oid], parameter_format))
    # A function call outside of SQL: to_hex(int8). A target with masks takes none.
    head = struct.pack("!Ihhh", 2090, 1, 1, 1)
    connection.ask(message(b"F", head, struct.pack("!i", 8), INT8, struct.pack("!h", 0)))
    connection.ask(message(b"Q", text("SELECT 1")))


main()
