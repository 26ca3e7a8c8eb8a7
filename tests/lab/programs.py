"""Real client programs: how each is called, and what is known of how it works."""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.lab.netns import CLEAN_ENV, Namespace
from tests.lab.world import Lab

SCRIPTS = Path(__file__).parent / "scripts"
PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Done:
    """A program that has ended."""

    pid: int
    code: int
    stdout: str
    stderr: str
    seconds: float


def run(
    space: Namespace,
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 20.0,
) -> Done:
    """Run a program inside ``space`` to its end."""
    started = time.monotonic()
    process = space.popen(
        argv, env=env, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE
    )
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout_s)
    except BaseException:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        raise
    return Done(process.pid, process.returncode, stdout, stderr, time.monotonic() - started)


def run_many(space: Namespace, argvs: Sequence[Sequence[str]]) -> list[Done]:
    """Run programs inside ``space`` side by side; results in the order of ``argvs``."""
    done: dict[int, Done] = {}

    def work(number: int) -> None:
        done[number] = run(space, argvs[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(argvs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [done[number] for number in range(len(argvs))]


def url(host: str, port: int, tls: str | None, path: str = "/") -> str:
    """A URL for a name or a literal; ``tls`` None is plain HTTP."""
    return f"{'https' if tls else 'http'}://{bracketed(host)}:{port}{path}"


def bracketed(host: str) -> str:
    """``host`` as it stands before ``:port``."""
    return f"[{host}]" if ":" in host else host


def is_literal(host: str) -> bool:
    """Whether ``host`` is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class CurlTimers:
    """curl's own figures (``--write-out``), microseconds since it began."""

    namelookup_us: float
    connect_us: float
    appconnect_us: float
    pretransfer_us: float
    starttransfer_us: float
    local_port: int
    remote_ip: str

    @property
    def sockconn_us(self) -> float:
        return self.connect_us - self.namelookup_us

    @property
    def tls_us(self) -> float:
        return self.appconnect_us - self.connect_us

    @property
    def response_us(self) -> float:
        return self.starttransfer_us - self.pretransfer_us


class Program:
    """One client program.

    Class attributes say what a record of it must show:
        executable: what is run; ``comm`` and ``exe`` follow from it.
        schemes: the TLS versions it can be held to, None for plain HTTP.
        resolves_literals: calls getaddrinfo() for an address too.
        resolves_in: ``thread`` the connecting thread asks, ``process`` another one does.
        tls_source: the library's name in ``tls.source``; ``wire`` for a program that never
            calls the library's handshake function itself.
        alpn: the protocols that it offers, None for no such extension.
    """

    name: ClassVar[str]
    executable: ClassVar[str]
    schemes: ClassVar[tuple[str | None, ...]] = (None, "1.2", "1.3")
    resolves_literals: ClassVar[bool]
    resolves_in: ClassVar[str]
    tls_source: ClassVar[str] = "openssl"
    alpn: ClassVar[tuple[str, ...] | None] = None
    method: ClassVar[str] = "GET"

    def __init__(self, lab: Lab) -> None:
        self.ca = str(lab.ca_file)

    @property
    def comm(self) -> str:
        return Path(self.executable).name[:15]

    @property
    def exe(self) -> str:
        found = shutil.which(self.executable, path=CLEAN_ENV["PATH"])
        assert found, f"{self.executable} is needed by this test and not installed"
        return str(Path(found).resolve())

    def argv(self, host: str, port: int, tls: str | None = None) -> list[str]:
        """A command line that makes one request."""
        raise NotImplementedError

    def stdin(self, host: str) -> str | None:
        """What must be typed into it."""
        return None


class Curl(Program):
    name = "curl"
    executable = "curl"
    resolves_literals = False
    resolves_in = "process"  # its threaded resolver
    alpn = ("h2", "http/1.1")

    def argv(self, host: str, port: int, tls: str | None = None) -> list[str]:
        return self.to_urls(url(host, port, tls), tls=tls)

    def to_urls(self, *urls: str, tls: str | None = None, options: Sequence[str] = ()) -> list[str]:
        """curl with several URLs or further options."""
        versions = [f"--tlsv{tls}", "--tls-max", tls] if tls else []
        outputs = [word for one in urls for word in ("--output", "/dev/null", one)]
        return [
            "curl", "--silent", "--show-error", "--write-out", "%{json}\n", "--cacert", self.ca,
            *versions, *options, *outputs,
        ]  # fmt: skip

    def timers(self, done: Done) -> CurlTimers:
        """The timers of the first transfer that curl has reported."""
        said = json.loads(done.stdout.splitlines()[0])
        phases = ("namelookup", "connect", "appconnect", "pretransfer", "starttransfer")
        return CurlTimers(
            **{f"{phase}_us": said[f"time_{phase}"] * 1e6 for phase in phases},
            local_port=said["local_port"],
            remote_ip=said["remote_ip"],
        )


class Wget(Program):
    name = "wget"
    executable = "wget"
    resolves_literals = True
    resolves_in = "thread"
    tls_source = "gnutls"

    def argv(self, host: str, port: int, tls: str | None = None) -> list[str]:
        versions = [f"--secure-protocol=TLSv{tls.replace('.', '_')}"] if tls else []
        return [
            "wget", "--quiet", "--tries=1", "--no-hsts", "--output-document=/dev/null",
            f"--ca-certificate={self.ca}", *versions, url(host, port, tls),
        ]  # fmt: skip


class _Python(Program):
    executable = PYTHON
    script: ClassVar[str]

    def argv(self, host: str, port: int, tls: str | None = None) -> list[str]:
        return [PYTHON, str(SCRIPTS / self.script), url(host, port, tls), tls or "-", self.ca]


class Urllib(_Python):
    name = "urllib"
    script = "urllib_get.py"
    resolves_literals = True
    resolves_in = "thread"


class Asyncio(_Python):
    name = "asyncio"
    script = "asyncio_get.py"
    resolves_literals = False
    resolves_in = "process"  # the loop's executor


class NodeHttps(Program):
    name = "node"
    executable = "node"
    script: ClassVar[str] = "https_get.mjs"
    resolves_literals = False
    resolves_in = "process"  # libuv's thread pool
    tls_source = "wire"  # its handshake happens inside SSL_read()

    def argv(self, host: str, port: int, tls: str | None = None) -> list[str]:
        versions = [f"--tls-min-v{tls}", f"--tls-max-v{tls}"] if tls else []
        script = str(SCRIPTS / self.script)
        return ["node", *versions, script, url(host, port, tls), self.ca]


class NodeFetch(NodeHttps):
    name = "node-fetch"
    script = "fetch_get.mjs"
    alpn = ("http/1.1",)


class OpensslClient(Program):
    name = "openssl"
    executable = "openssl"
    schemes = ("1.2", "1.3")
    tls_source = "wire"  # its handshake happens inside SSL_read()
    resolves_literals = True
    resolves_in = "thread"

    def argv(self, host: str, port: int, tls: str | None = None) -> list[str]:
        assert tls
        named = ["-noservername"] if is_literal(host) else ["-servername", host]
        return [
            "openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", self.ca,
            f"-tls{tls.replace('.', '_')}", *named, "-connect", f"{bracketed(host)}:{port}",
        ]  # fmt: skip

    def stdin(self, host: str) -> str | None:
        return f"GET / HTTP/1.1\r\nHost: {bracketed(host)}\r\nConnection: close\r\n\r\n"


PROGRAMS: tuple[type[Program], ...] = (
    Curl,
    Wget,
    Urllib,
    Asyncio,
    NodeHttps,
    NodeFetch,
    OpensslClient,
)
