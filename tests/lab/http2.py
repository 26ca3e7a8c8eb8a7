"""HTTP/2 inside TLS: servers of many kinds in front of one whose delay the path says, and clients.

Every server stands in one namespace, and clients in others, each as far from it as its link makes.
``/150/TAG`` is answered after 150 ms; the one behind the servers notes when.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import certs, netns
from tests.lab.link import DelayLink
from tests.lab.netns import CLEAN_ENV, Namespace

SCRIPTS = Path(__file__).parent / "scripts"
NPM = Path(sys.prefix) / "npm" / "node_modules" / ".bin"
HOST = "h2.lab.test"
BACKEND = "127.0.0.1:8080"
START_S = 20.0


def _nginx(
    folder: Path, port: int, cert: Path, key: Path, versions: str = "TLSv1.2 TLSv1.3"
) -> list[str]:
    conf = folder / f"nginx{port}.conf"
    conf.write_text(
        f"""daemon off; pid {conf}.pid; error_log {conf}.err; user root; events {{}}
http {{ access_log off; ssl_protocols {versions}; client_max_body_size 0;
client_body_temp_path {folder}/n1; proxy_temp_path {folder}/n2; fastcgi_temp_path {folder}/n3;
uwsgi_temp_path {folder}/n4; scgi_temp_path {folder}/n5;
server {{ listen {port} ssl http2; ssl_certificate {cert};
ssl_certificate_key {key}; location / {{ proxy_pass http://{BACKEND}; }} }} }}"""
    )
    return ["nginx", "-c", str(conf)]


def _nginx_12(folder: Path, port: int, cert: Path, key: Path) -> list[str]:
    return _nginx(folder, port, cert, key, "TLSv1.2")


def _haproxy(folder: Path, port: int, cert: Path, key: Path) -> list[str]:
    (folder / "haproxy.pem").write_text(cert.read_text() + key.read_text())
    (folder / "haproxy.cfg").write_text(
        f"""defaults
 mode http
 timeout client 30s
 timeout server 30s
 timeout connect 5s
frontend f
 bind :{port} ssl crt {folder}/haproxy.pem alpn h2,http/1.1
 default_backend b
backend b
 server s {BACKEND}
"""
    )
    return ["haproxy", "-f", f"{folder}/haproxy.cfg"]


def _h2o(folder: Path, port: int, cert: Path, key: Path) -> list[str]:
    (folder / "h2o.yaml").write_text(
        f"""user: root
listen: {{port: {port}, ssl: {{certificate-file: {cert}, key-file: {key}}}}}
hosts: {{default: {{paths: {{/: {{proxy.reverse.url: "http://{BACKEND}/"}}}}}}}}
"""
    )
    return ["h2o", "-c", f"{folder}/h2o.yaml"]


def _apache(folder: Path, port: int, cert: Path, key: Path) -> list[str]:
    modules = ("mpm_event", "authz_core", "http2", "ssl", "socache_shmcb", "proxy", "proxy_http")
    lines = "".join(f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so\n" for m in modules)
    (folder / "apache.conf").write_text(
        lines
        + f"""ServerName {HOST}
ServerRoot {folder}
Mutex file:{folder}
PidFile {folder}/apache.pid
ErrorLog {folder}/apache.err
Listen {port}
Protocols h2 http/1.1
SSLEngine on
SSLCertificateFile {cert}
SSLCertificateKeyFile {key}
ProxyPass / http://{BACKEND}/
"""
    )
    return ["apache2", "-X", "-f", f"{folder}/apache.conf"]


def _lighttpd(folder: Path, port: int, cert: Path, key: Path) -> list[str]:
    (folder / "lighttpd.conf").write_text(
        f"""server.modules = ("mod_openssl", "mod_proxy")
server.document-root = "{folder}"
server.port = {port}
ssl.engine = "enable"
ssl.pemfile = "{cert}"
ssl.privkey = "{key}"
proxy.server = ("" => (("host" => "127.0.0.1", "port" => 8080)))
"""
    )
    return ["lighttpd", "-D", "-f", f"{folder}/lighttpd.conf"]


def _caddy(folder: Path, port: int, cert: Path, key: Path) -> list[str]:
    (folder / "Caddyfile").write_text(
        f"{{\n admin off\n auto_https off\n}}\n"
        f"https://{HOST}:{port} {{\n tls {cert} {key}\n reverse_proxy {BACKEND}\n}}\n"
    )
    home = [f"HOME={folder}", f"XDG_DATA_HOME={folder}", f"XDG_CONFIG_HOME={folder}"]
    caddy = ["caddy", "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]
    return ["env", *home, *caddy]


def _node(folder: Path, port: int, cert: Path, key: Path) -> list[str]:
    return ["node", str(SCRIPTS / "h2_server.mjs"), str(port), str(cert), str(key)]


def _python(folder: Path, port: int, cert: Path, key: Path) -> list[str]:
    return [sys.executable, str(SCRIPTS / "h2_server.py"), str(port), str(cert), str(key)]


SERVERS: dict[str, tuple[int, str, Callable[[Path, int, Path, Path], list[str]]]] = {
    "nginx": (8441, "nginx", _nginx),
    "nginx-1.2": (8449, "nginx", _nginx_12),
    "haproxy": (8442, "haproxy", _haproxy),
    "h2o": (8443, "h2o", _h2o),
    "apache": (8444, "apache2", _apache),
    "lighttpd": (8445, "lighttpd", _lighttpd),
    "caddy": (8446, "caddy", _caddy),  # Go
    "node": (8447, "node", _node),
    "python": (8448, sys.executable, _python),
}


# Each makes the command line of one request; body is a file, None for GET.
def _curl(url: str, body: Path | None, ca: Path) -> list[str]:
    sent = [] if body is None else ["--data-binary", f"@{body}"]
    return ["curl", "-sS", "-o", "/dev/null", "--http2", "--cacert", str(ca), *sent, url]


def _curl_cffi(url: str, body: Path | None, ca: Path) -> list[str]:
    script = str(SCRIPTS / "h2_curl_cffi.py")
    return [sys.executable, script, url, str(ca), *([] if body is None else [str(body)])]


def _httpx(url: str, body: Path | None, ca: Path) -> list[str]:
    script = str(SCRIPTS / "h2_httpx.py")
    return [sys.executable, script, url, str(ca), *([] if body is None else [str(body)])]


def _nghttp(url: str, body: Path | None, ca: Path) -> list[str]:
    return ["nghttp", "-n", *([] if body is None else ["-d", str(body)]), url]


def _h2load(url: str, body: Path | None, ca: Path) -> list[str]:
    return ["h2load", "-n1", "-c1", *([] if body is None else ["-d", str(body)]), url]


def _node_http2(url: str, body: Path | None, ca: Path) -> list[str]:
    script = str(SCRIPTS / "h2_client.mjs")
    return ["node", script, url, str(ca), *([] if body is None else [str(body)])]


def _hey(url: str, body: Path | None, ca: Path) -> list[str]:
    sent = [] if body is None else ["-m", "POST", "-D", str(body)]
    return ["hey", "-h2", "-n", "1", "-c", "1", *sent, url]


def _rclone(url: str, body: Path | None, ca: Path) -> list[str]:
    options = ["--config=", f"--ca-cert={ca}", "--retries=1", "--low-level-retries=1"]
    return ["rclone", *options, "copyurl", "--stdout", url]


def _deno(url: str, body: Path | None, ca: Path) -> list[str]:
    sent = f', {{method: "POST", body: Deno.readFileSync("{body}")}}' if body else ""
    code = f'await (await fetch("{url}"{sent})).text()'
    return [str(NPM / "deno"), "eval", "--cert", str(ca), code]


def _wget2(url: str, body: Path | None, ca: Path) -> list[str]:
    sent = [] if body is None else [f"--post-file={body}"]
    options = ["-q", "-O", "/dev/null", f"--ca-certificate={ca}", "--no-ocsp", "--no-hsts"]
    return ["wget2", *options, "--tries=1", *sent, url]


CLIENTS: dict[str, Callable[[str, Path | None, Path], list[str]]] = {
    "curl": _curl,
    "curl_cffi": _curl_cffi,  # a newer libcurl, BoringSSL
    "httpx": _httpx,
    "nghttp": _nghttp,
    "h2load": _h2load,
    "node": _node_http2,
    "hey": _hey,  # Go
    "rclone": _rclone,  # Go; GET alone
    "deno": _deno,  # hyper, rustls
    "wget2": _wget2,
}
NO_BODY = ("rclone",)


@dataclass(frozen=True)
class Asked:
    """One request that was made and answered."""

    client: str
    server: str
    bytes_sent: int | None
    trip_us: int
    wait_us: int
    pid: int
    netns: int
    begun_ns: int
    ended_ns: int
    tag: str


class Http2Lab:
    """Namespaces, links and servers; a context manager.

    Args:
        folder: for certificates, configurations and bodies.
        trips_us: the round trips to lay.

    Servers that are not installed are left out.
    """

    def __init__(self, folder: Path, *, trips_us: Sequence[int]) -> None:
        os.chmod(folder, 0o755)
        self.folder = folder
        self.bodies: dict[int, Path] = {}
        self.ports: dict[str, int] = {}
        self.near: dict[int, Namespace] = {}
        self._notes = folder / "notes"
        self._notes.touch()
        self._log = (folder / "log").open("w")
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            netns.remove_stale()
            self.far = stack.enter_context(netns.namespace())
            addresses = {trip: f"10.88.{i}" for i, trip in enumerate(trips_us)}
            names = [HOST, *(f"{net}.2" for net in addresses.values())]
            self.ca, identity, _ = certs.make_authority(folder, names)
            os.chmod(identity.key, 0o644)
            for i, (trip, net) in enumerate(addresses.items()):
                near = self.near[trip] = stack.enter_context(netns.namespace())
                hosts = netns.ETC_DIR / near.name / "hosts"
                hosts.write_text(hosts.read_text() + f"{net}.2 {HOST}\n")
                link = DelayLink(
                    near,
                    self.far,
                    delay_s=trip / 2e6,
                    near_addresses=(f"{net}.1", f"fd88:{i}::1"),
                    far_addresses=(f"{net}.2", f"fd88:{i}::2"),
                    device=f"wan{i}",
                )
                stack.callback(link.close)
            backend = [sys.executable, str(SCRIPTS / "h2_backend.py"), "8080"]
            commands = {8080: backend}
            for name, (port, program, make) in SERVERS.items():
                if shutil.which(program, path=CLEAN_ENV["PATH"]):
                    commands[port] = make(folder, port, identity.cert, identity.key)
                    self.ports[name] = port
            for argv in commands.values():
                process = self.far.popen(
                    argv,
                    env={**CLEAN_ENV, "H2_NOTES": str(self._notes)},
                    stdout=self._log,
                    stderr=self._log,
                )
                stack.callback(_end, process)
            for port in commands:
                self._await(port)
            self._stack = stack.pop_all()

    def _await(self, port: int) -> None:
        def listening() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", port)) == 0

        end = time.monotonic() + START_S
        while not self.far.call(listening):
            assert time.monotonic() < end, f"nobody on port {port}: {self.folder}/log"
            time.sleep(0.1)

    def body(self, size: int) -> Path:
        """A file of that many bytes."""
        path = self.bodies.get(size)
        if path is None:
            path = self.bodies[size] = self.folder / f"body{size}"
            path.write_bytes(b"x" * size)
        return path

    def ask(
        self, client: str, server: str, *, size: int | None, trip_us: int, wait_ms: int, tag: str
    ) -> Asked | None:
        """Make one request; None where the client failed."""
        near = self.near[trip_us]
        address = f"https://{HOST}:{self.ports[server]}/{wait_ms}/{tag}"
        body = None if size is None else self.body(size)
        begun_ns = time.monotonic_ns()
        process = near.popen(
            CLIENTS[client](address, body, self.ca),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**CLEAN_ENV, "HOME": str(self.folder)},
        )
        try:
            code = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            return None
        return Asked(
            client=client,
            server=server,
            bytes_sent=size,
            trip_us=trip_us,
            wait_us=wait_ms * 1000,
            pid=process.pid,
            netns=near.inode,
            begun_ns=begun_ns,
            ended_ns=time.monotonic_ns(),
            tag=tag,
        )

    def answers(self) -> dict[str, int]:
        """When each tag was answered, CLOCK_MONOTONIC."""
        lines = (line.split() for line in self._notes.read_text().splitlines())
        return {tag: int(at) for tag, at in lines}

    def __enter__(self) -> Http2Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._log.close()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
