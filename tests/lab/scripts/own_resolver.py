"""A resolver of its own: asks for each name until one is found, and connects to that.

own_resolver.py RESOLVER PORT NAME...
"""

import socket
import sys
import time

resolver, port, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.connect((resolver, 53))
    for number, name in enumerate(names):
        labels = b"".join(bytes([len(x)]) + x.encode() for x in name.split("."))
        head = number.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0"
        asking.send(head + labels + b"\0\0\1\0\1")
        answer = asking.recv(999)
        if answer[7]:
            break
        if name.startswith("alone"):
            time.sleep(0.6)  # what comes now is another lookup
with socket.create_connection((socket.inet_ntoa(answer[-4:]), port)) as sock:
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    while sock.recv(999):
        pass
