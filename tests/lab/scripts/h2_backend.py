"""Answers HTTP/1.1 at ``/MS/TAG`` after that many milliseconds, and notes when it did."""

import http.server
import os
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = int(self.headers.get("content-length", 0))
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        self.rfile.read(body)
        _, wait, tag = self.path.split("/")
        time.sleep(int(wait) / 1000)
        with open(os.environ["H2_NOTES"], "a") as notes:
            notes.write(f"{tag} {time.monotonic_ns()}\n")
        head = f"HTTP/1.1 200 OK\r\nDate: {self.date_time_string()}\r\nContent-Length: 2\r\n\r\n"
        self.wfile.write(f"{head}ok".encode())  # at once: it has no TCP_NODELAY

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
