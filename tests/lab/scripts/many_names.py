"""many_names.py PORT NAME...: a thread for each name, all look up and connect at once.

Prints a JSON object: local port to the name that the thread asked for.
"""

import json
import socket
import sys
import threading

port, *names = sys.argv[1:]
together = threading.Barrier(len(names))
asked = {}


def visit(name):
    together.wait()
    with socket.create_connection((name, int(port))) as sock:
        asked[sock.getsockname()[1]] = name
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        while sock.recv(4096):
            pass


threads = [threading.Thread(target=visit, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(asked))
