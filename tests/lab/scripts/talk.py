"""Talk to a server as the steps on stdin say, a line of JSON each, and print what was heard.

The first line: where to, and "tls": null, or the ALPN protocols to offer (none: an empty list).
"""

import json
import socket
import ssl
import sys
import time

first, *steps = map(json.loads, sys.stdin)
sock = socket.create_connection((first["address"], first["port"]), timeout=10)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
if first.get("tls") is not None:
    context = ssl._create_unverified_context()
    if first["tls"]:
        context.set_alpn_protocols(first["tls"])
    sock = context.wrap_socket(sock)
for name, value in steps:
    try:
        if name == "say":
            sock.sendall(value.encode())
        elif name == "hear":
            sock.settimeout(value)
            print(sock.recv(65536))
        elif name == "wait":
            time.sleep(value)
        elif name == "shutdown":
            sock.shutdown(value)
    except OSError as error:
        print(type(error).__name__)
sock.close()
