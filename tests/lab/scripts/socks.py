"""A SOCKS 5 proxy without authentication (RFC 1928); says "up" when it listens."""

import socket
import sys
import threading


def copy(source, target):
    while data := source.recv(4096):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def serve(client):
    _, count = client.recv(2)
    client.recv(count)
    client.sendall(b"\5\0")
    kind = client.recv(4)[3]
    if kind == 1:
        host = socket.inet_ntoa(client.recv(4))
    else:
        host = client.recv(client.recv(1)[0]).decode()
    port = int.from_bytes(client.recv(2), "big")
    server = socket.create_connection((host, port))
    client.sendall(b"\5\0\0\1" + bytes(6))
    threading.Thread(target=copy, args=(server, client), daemon=True).start()
    copy(client, server)


listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("up", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
