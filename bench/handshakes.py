"""HTTPS connections as fast as Python makes them: run as ``python -m bench.handshakes``.

What counts is the ratio with and without conmond, not the rate. Prints the line that
bench/load.c prints. Client and server are processes of their own; each connection looks up
"localhost", handshakes (TLS 1.3, a P-256 key) and carries one request.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final, NoReturn

__all__ = ["main"]

_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
_RESPONSE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_BACKLOG: Final = 128


def _make_certificate(folder: Path) -> tuple[str, str]:
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subprocess.run(
        [
            *words.split(),
            *("-subj", "/CN=localhost", "-keyout", key, "-out", certificate),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
        ],
        check=True,
        capture_output=True,
    )
    return key, certificate


def _serve(listener: socket.socket, key: str, certificate: str) -> NoReturn:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    while True:
        plain, _ = listener.accept()
        try:
            with context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(4096)
                connection.sendall(_RESPONSE)
        except OSError:
            continue  # the client's affair, which counts what it established


def _connect(port: int, context: ssl.SSLContext) -> None:
    with (
        socket.create_connection(("localhost", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(_REQUEST)
        connection.recv(4096)


def main() -> None:
    """Make connections for the seconds given as the only argument, in two threads."""
    seconds = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = _make_certificate(Path(folder))
        # on both families at once, whatever localhost means first
        listener = socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
        port = listener.getsockname()[1]
        server = os.fork()
        if server == 0:
            _serve(listener, key, certificate)
        counts = [0, 0]
        try:
            listener.close()
            context = ssl.create_default_context(cafile=certificate)
            start = time.monotonic()

            def work(number: int) -> None:
                while time.monotonic() - start < seconds:
                    _connect(port, context)
                    counts[number] += 1

            threads = [threading.Thread(target=work, args=(i,)) for i in range(len(counts))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - start
        finally:
            os.kill(server, signal.SIGTERM)
            os.waitpid(server, 0)
    print(json.dumps({"established": sum(counts), "failed": 0, "seconds": took}))


if __name__ == "__main__":
    main()
