"""Real TLS servers and clients on loopback, with waits that are known."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

NODE_H2 = """
const h2 = require('http2'), fs = require('fs');
const [cert, key, port, wait] = process.argv.slice(1);
h2.createSecureServer({cert: fs.readFileSync(cert), key: fs.readFileSync(key)})
  .on('stream', s => setTimeout(() => {
    s.respond({':status': 200, 'content-type': 'text/plain'}); s.end('hello') }, +wait))
  .listen(+port, '127.0.0.1');
"""
NODE_H2_CLIENT = """
const h2 = require('http2'), fs = require('fs');
const [ca, port] = process.argv.slice(1);
const c = h2.connect('https://localhost:' + port, {ca: fs.readFileSync(ca)});
const r = c.request({':path': '/'}); r.resume(); r.on('end', () => c.close()); r.end();
"""
JAVA_SERVER = """
import com.sun.net.httpserver.*; import javax.net.ssl.*; import java.io.*;
import java.net.*; import java.security.*;
class S { public static void main(String[] a) throws Exception {
  KeyStore ks = KeyStore.getInstance("PKCS12");
  ks.load(new FileInputStream(a[0]), "secret".toCharArray());
  KeyManagerFactory k = KeyManagerFactory.getInstance("SunX509");
  k.init(ks, "secret".toCharArray());
  SSLContext c = SSLContext.getInstance("TLS"); c.init(k.getKeyManagers(), null, null);
  HttpsServer s = HttpsServer.create(new InetSocketAddress("127.0.0.1",
    Integer.parseInt(a[1])), 0);
  s.setHttpsConfigurator(new HttpsConfigurator(c));
  s.createContext("/", x -> { try { Thread.sleep(Long.parseLong(a[2])); } catch (Exception e) {}
    byte[] b = "hello".getBytes(); x.sendResponseHeaders(200, b.length);
    x.getResponseBody().write(b); x.close(); });
  s.start(); } }
"""
JAVA_CLIENT = """
import javax.net.ssl.*; import java.io.*; import java.net.*; import java.security.*;
class C { public static void main(String[] a) throws Exception {
  SSLContext c = SSLContext.getInstance("TLS");
  KeyStore t = KeyStore.getInstance("PKCS12");
  t.load(new FileInputStream(a[0]), "secret".toCharArray());
  TrustManagerFactory f = TrustManagerFactory.getInstance("PKIX"); f.init(t);
  KeyManagerFactory k = KeyManagerFactory.getInstance("SunX509");
  k.init(t, "secret".toCharArray());
  c.init(k.getKeyManagers(), a[2].equals("trust") ? f.getTrustManagers() : null, null);
  if (a.length > 3) { java.net.http.HttpClient h = java.net.http.HttpClient.newBuilder()
      .sslContext(c).build();
    h.send(java.net.http.HttpRequest.newBuilder(URI.create("https://localhost:" + a[1] + "/"))
      .build(), java.net.http.HttpResponse.BodyHandlers.ofString()); return; }
  HttpsURLConnection u = (HttpsURLConnection) new URL("https://localhost:" + a[1] + "/")
    .openConnection();
  u.setSSLSocketFactory(c.getSocketFactory()); u.getInputStream().readAllBytes(); } }
"""


class Lab:
    """One scenario: a folder with certificates, a port to watch, programs to end."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.port = 0
        self.take = -1  # which connection counts: the last, unless told
        self.keys = str(folder / "keys.log")
        self.ca = str(folder / "ca.pem")
        self.cert = str(folder / "cert.pem")
        self.key = str(folder / "key.pem")
        self.p12 = str(folder / "all.p12")
        self.truth: dict[str, object] = {}
        self.about = ""

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/"

    def free_port(self) -> int:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port: int = s.getsockname()[1]
            return port

    def spawn(
        self, *argv: str, stdin: bool = False, cwd: str | None = None
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, "SSLKEYLOGFILE": self.keys},
        )

        def end() -> None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)
            process.kill()

        self.stack.callback(end)
        return process

    def run(self, *argv: str, stdin: bytes = b"", **env: str) -> bytes:
        result = subprocess.run(
            argv,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
            env={**os.environ, "SSLKEYLOGFILE": self.keys, **env},
        )
        return result.stdout

    def curl(self, *options: str) -> bytes:
        return self.run("curl", "-sS", "--http1.1", "--cacert", self.ca, *options, self.url)

    def s_client(
        self, *options: str, send: bytes = b"GET / HTTP/1.0\r\n\r\n", hold: float = 0.3
    ) -> None:
        process = self.spawn(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-servername"),
            *("localhost", "-quiet", "-ign_eof", "-keylogfile", self.keys, *options),
            stdin=True,
        )
        assert process.stdin is not None
        time.sleep(0.1)
        with suppress(BrokenPipeError):
            process.stdin.write(send)
            process.stdin.flush()
        time.sleep(hold)
        with suppress(BrokenPipeError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)

    def wait_listen(self, port: int) -> None:
        want = f"{port:04X}"
        for _ in range(200):
            rows = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
            if re.search(rf":{want} [0-9A-F]+:0000 0A", rows):
                return
            time.sleep(0.05)
        raise SystemExit(f"nothing listens on port {port}")

    def context(self, **options: object) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        context.keylog_filename = self.keys
        for name, value in options.items():
            if name == "curve":
                context.set_ecdh_curve(str(value))
            elif name == "ciphers":
                context.set_ciphers(str(value))
            elif name == "client_certificate":
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.ca)
            else:
                setattr(context, name, value)
        return context

    def serve(
        self,
        wait: float | list[float] = 0.0,
        *,
        body: bytes = b"hello\n",
        body_wait: float | None = None,
        tls_wait: float = 0.0,
        **options: object,
    ) -> None:
        """An HTTP/1.1 server of Python's ssl module that waits as told before each answer."""
        context = self.context(**options)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.stack.callback(listener.close)
        waits = wait if isinstance(wait, list) else [wait]

        def talk(raw: socket.socket) -> None:
            with suppress(OSError, ValueError), raw:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls_wait:
                    raw.recv(1, socket.MSG_PEEK)
                    time.sleep(tls_wait)
                tls = context.wrap_socket(raw, server_side=True)
                buffered = b""
                for count in range(100):
                    while b"\r\n\r\n" not in buffered:
                        chunk = tls.recv(65536)
                        if not chunk:
                            return
                        buffered += chunk
                    head, _, buffered = buffered.partition(b"\r\n\r\n")
                    if b"100-continue" in head:
                        tls.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    length = re.search(rb"(?i)content-length: (\d+)", head)
                    left = int(length[1]) if length else 0
                    while len(buffered) < left:
                        buffered += tls.recv(65536)
                    buffered = buffered[left:]
                    time.sleep(waits[min(count, len(waits) - 1)])
                    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                    if body_wait is None:
                        tls.sendall(answer + body)
                    else:
                        tls.sendall(answer)
                        time.sleep(body_wait)
                        tls.sendall(body)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def openssl_server(self, *options: str) -> None:
        self.port = self.free_port()
        self.spawn(
            *("openssl", "s_server", "-accept", f"127.0.0.1:{self.port}", "-cert", self.cert),
            *("-key", self.key, "-www", "-keylogfile", self.keys, *options),
        )
        self.wait_listen(self.port)

    def nginx(self, extra: str = "", listen: str = "ssl") -> None:
        self.port = self.free_port()
        config = self.folder / "nginx.conf"
        config.write_text(
            f"daemon off; error_log /dev/null; pid {self.folder}/nginx.pid; worker_processes 1;"
            "events {} http { access_log off; server {"
            f"listen 127.0.0.1:{self.port} {listen}; ssl_certificate {self.cert};"
            f"ssl_certificate_key {self.key};"
            f"ssl_protocols TLSv1.2 TLSv1.3; {extra}"
            'location / { return 200 "hello"; } } }'
        )
        self.spawn("nginx", "-p", str(self.folder), "-c", str(config))
        self.wait_listen(self.port)

    def node_server(self, wait_ms: int) -> None:
        self.port = self.free_port()
        script = (NODE_H2, self.cert, self.key, str(self.port), str(wait_ms))
        self.spawn("node", f"--tls-keylog={self.keys}", "-e", *script)
        self.wait_listen(self.port)

    def java_server(self, wait_ms: int) -> None:
        self.port = self.free_port()
        source = self.folder / "S.java"
        source.write_text(JAVA_SERVER)
        self.spawn("java", str(source), self.p12, str(self.port), str(wait_ms))
        self.wait_listen(self.port)

    def java_client(self, trust: str = "trust", *more: str) -> None:
        source = self.folder / "C.java"
        source.write_text(JAVA_CLIENT)
        self.run("java", str(source), self.p12, str(self.port), trust, *more)

    def far_away(self, round_trip: float) -> None:
        """Put a proxy in front that adds a round trip; packets are watched on its near side."""
        target = self.port
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.stack.callback(listener.close)

        def pump(source: socket.socket, sink: socket.socket) -> None:
            pending: list[tuple[float, bytes]] = []
            more = threading.Condition()

            def deliver() -> None:
                while True:
                    with more:
                        while not pending:
                            more.wait()
                        due, data = pending.pop(0)
                    time.sleep(max(0.0, due - time.monotonic()))
                    with suppress(OSError):
                        if not data:
                            sink.shutdown(socket.SHUT_WR)
                            return
                        sink.sendall(data)

            threading.Thread(target=deliver, daemon=True).start()
            data = b"x"
            while data:
                try:
                    data = source.recv(65536)
                except OSError:
                    data = b""
                with more:
                    pending.append((time.monotonic() + round_trip / 2, data))
                    more.notify()

        def accept() -> None:
            with suppress(OSError):
                while True:
                    near = listener.accept()[0]
                    far = socket.create_connection(("127.0.0.1", target))
                    for s in (near, far):
                        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()


def certificates(lab: Lab) -> None:
    folder = lab.folder
    (folder / "ext").write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    store = "-keystore all.p12 -storepass secret"
    for argv in (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=Test_CA"
        " -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.pem",
        "openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out req.pem",
        "openssl x509 -req -in req.pem -CA ca.pem -CAkey ca.key -days 30 -extfile ext"
        " -out cert.pem",
        "openssl pkcs12 -export -in cert.pem -inkey key.pem -certfile ca.pem"
        " -passout pass:secret -out all.p12",
        f"keytool -importcert -noprompt -alias ca -file ca.pem {store}",
    ):
        subprocess.run(argv.split(), cwd=folder, check=True, stderr=subprocess.DEVNULL)
