"""Many real programs, each making one HTTPS request: other languages, resolvers and TLS stacks.

``programs.py`` has the few whose every field is held to a table. These are held to what must be
right for any program: the name, the answer, the four times, and how it failed.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.lab.programs import PYTHON, SCRIPTS

ROOT = Path(__file__).resolve().parents[2]
NPM = ROOT / ".venv/npm/node_modules/.bin"
PIP = Path(sysconfig.get_path("scripts"))
REQUEST = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Tools:
    """What the programs are given."""

    ca: str
    folder: Path
    """Their home, gone afterwards."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """One program.

    Args:
        name: of the program.
        stack: its language and its TLS stack.
        argv: its command line, for a URL.
        resolver: the record's ``dns_source``: ``wire`` where no C library is asked.
        match: what ``dns_match`` may be.
        tls: the TLS version it is held to.
        source: what ``tls.source`` may be.
        checks: when it looks at the certificate: ``during`` the handshake, ``after`` it, or
            ``never``.
        stdin: what must be typed into it.
    """

    name: str
    stack: str
    argv: Callable[[str, Tools], list[str]]
    resolver: str = "getaddrinfo"
    match: tuple[str, ...] = ("thread",)
    tls: str = "1.3"
    source: str = "openssl"
    checks: str = "during"
    stdin: str | None = None


def _at(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return str(parts.hostname), str(parts.port)


def _script(interpreter: str, name: str) -> Callable[[str, Tools], list[str]]:
    return lambda url, tools: [interpreter, str(SCRIPTS / name), url, tools.ca]


def _java(url: str, tools: Tools) -> list[str]:
    store = tools.folder / "trust.p12"
    classes = tools.folder / "classes"
    if not store.exists():
        subprocess.run(
            ["keytool", "-importcert", "-noprompt", "-alias", "lab", "-file", tools.ca,
             "-keystore", str(store), "-storepass", "changeit", "-storetype", "PKCS12"],
            check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(
            ["javac", "-d", str(classes), str(SCRIPTS / "Get.java")],
            check=True,
            capture_output=True,
        )
    return [
        "java", "-Xshare:auto", f"-Djavax.net.ssl.trustStore={store}",
        "-Djavax.net.ssl.trustStorePassword=changeit", "-cp", str(classes), "Get", url,
    ]  # fmt: skip


def _compiled(name: str, *options: str) -> Callable[[str, Tools], list[str]]:
    def argv(url: str, tools: Tools) -> list[str]:
        program = tools.folder / name
        if not program.exists():
            source = str(SCRIPTS / f"{name}.c")
            subprocess.run(["gcc", "-o", str(program), source, *options], check=True)
        return [str(program), *_at(url), tools.ca]

    return argv


_NSS = ("-I/usr/include/nspr", "-I/usr/include/nss", "-lnss3", "-lssl3", "-lnspr4")


_LWP = """
my $agent = LWP::UserAgent->new(ssl_opts => {SSL_ca_file => $ARGV[1]});
exit !$agent->get($ARGV[0])->is_success;
"""
_TINY = """
my $http = HTTP::Tiny->new(verify_SSL => 1, SSL_options => {SSL_ca_file => $ARGV[1]});
exit !$http->get($ARGV[0])->{success};
"""
_ERLANG = (
    "ssl:start(), inets:start(), logger:set_primary_config(level, none), "
    'R = httpc:request(get, {"%s", []}, [{ssl, [{verify, verify_none}]}], []), '
    "halt(case R of {ok, _} -> 0; _ -> 1 end)."
)
_DENO = "await (await fetch('%s')).text()"
_BUN = "await (await fetch('%s', {tls: {ca: Bun.file('%s')}})).text()"

FLEET: tuple[Client, ...] = (
    Client(
        name="hey",
        stack="Go, crypto/tls",
        argv=lambda url, tools: ["hey", "-n", "1", "-c", "1", url],
        resolver="wire",
        match=("thread", "process"),
        source="wire",
        checks="never",
    ),
    Client(
        name="rclone",
        stack="Go, crypto/tls",
        argv=lambda url, tools: [
            "rclone", "--ca-cert", tools.ca, "--retries", "1", "--low-level-retries", "1",
            "copyurl", "--stdout", url,
        ],
        resolver="wire",
        match=("thread", "process"),
        source="wire",
    ),
    Client(name="java", stack="Java, JSSE", argv=_java, source="wire"),
    Client(
        name="lwp",
        stack="Perl, OpenSSL",
        argv=lambda url, tools: ["perl", "-MLWP::UserAgent", "-e", _LWP, url, tools.ca],
    ),
    Client(
        name="http-tiny",
        stack="Perl, OpenSSL",
        argv=lambda url, tools: ["perl", "-MHTTP::Tiny", "-e", _TINY, url, tools.ca],
    ),
    Client(name="ruby", stack="Ruby, OpenSSL", argv=_script("ruby", "get.rb")),
    Client(name="php", stack="PHP, OpenSSL", argv=_script("php", "get.php")),
    Client(name="lua", stack="Lua, OpenSSL", argv=_script("lua", "get.lua")),
    Client(name="tcl", stack="Tcl, OpenSSL", argv=_script("tclsh", "get.tcl")),
    Client(
        name="guile",
        stack="Scheme, GnuTLS",
        argv=_script("guile", "get.scm"),
        source="gnutls",
        checks="never",
    ),
    Client(
        name="erlang",
        stack="Erlang, its own TLS",
        argv=lambda url, tools: ["erl", "-noshell", "-eval", _ERLANG % url],
        match=("host",),
        source="wire",
        checks="never",
    ),
    Client(
        name="pandoc",
        stack="Haskell, its own TLS",
        argv=lambda url, tools: [
            "env", f"SYSTEM_CERTIFICATE_PATH={tools.ca}", "pandoc", "--from=html", url,
        ],
        source="wire",
    ),
    Client(
        name="deno",
        stack="Rust, rustls",
        argv=lambda url, tools: [str(NPM / "deno"), "eval", "--cert", tools.ca, _DENO % url],
        match=("process",),
        source="wire",
    ),
    Client(
        name="uv",
        stack="Rust, rustls",
        argv=lambda url, tools: [
            str(PIP / "uv"), "--no-cache", "--no-config", "pip", "install", "--dry-run",
            "--python", sys.executable, "--target", str(tools.folder / "uv"), "--index-url", url,
            "nothing-of-this-name",
        ],
        match=("process",),
        source="wire",
    ),
    Client(
        name="bun",
        stack="JavaScript, BoringSSL",
        argv=lambda url, tools: [str(NPM / "bun"), "-e", _BUN % (url, tools.ca)],
        match=("thread", "process"),
        source="wire",
    ),
    Client(
        name="curl_cffi",
        stack="C, BoringSSL, c-ares",
        argv=_script(sys.executable, "curl_cffi_get.py"),
        resolver="wire",
        match=("thread", "process"),
        checks="after",
    ),
    Client(
        name="aria2",
        stack="C++, GnuTLS, c-ares",
        argv=lambda url, tools: [
            "aria2c", f"--ca-certificate={tools.ca}", "--quiet", "--allow-overwrite=true",
            "--max-tries=1", f"--dir={tools.folder}", "--out=aria2", url,
        ],
        resolver="wire",
        source="gnutls",
        checks="after",
    ),
    Client(
        name="pygit2",
        stack="Python, libgit2, mbedTLS",
        argv=_script(PYTHON, "pygit2_clone.py"),
        tls="1.2",
        source="mbedtls",
        checks="after",
    ),
    Client(
        name="nss",
        stack="C, NSS",
        argv=_compiled("nss_get", *_NSS),
        source="nss",
        checks="never",
    ),
    Client(
        name="wolfssl",
        stack="C, wolfSSL",
        argv=_compiled("wolfssl_get", "-lwolfssl"),
        source="wolfssl",
    ),
    Client(
        name="lynx",
        stack="C, GnuTLS, resolver in a child",
        argv=lambda url, tools: ["lynx", "-dump", url],
        match=("host",),
        source="gnutls",
        checks="after",
    ),
    Client(
        name="lftp",
        stack="C++, GnuTLS, resolver in a child",
        argv=lambda url, tools: [
            "lftp", "-c", f"set ssl:ca-file {tools.ca}; set net:max-retries 1; cat {url}",
        ],
        match=("host",),
        source="gnutls",
        checks="after",
    ),
    Client(
        name="elinks",
        stack="C, GnuTLS, resolver in a child",
        argv=lambda url, tools: ["elinks", "-dump", url],
        match=("host",),
        source="gnutls",
        checks="never",
    ),
    Client(
        name="links",
        stack="C, OpenSSL, resolver in a child",
        argv=lambda url, tools: ["links", "-ssl.certificates", "0", "-source", url],
        match=("host",),
        checks="never",
    ),
    Client(
        name="w3m",
        stack="C, OpenSSL",
        argv=lambda url, tools: ["w3m", "-o", f"ssl_ca_file={tools.ca}", "-dump", url],
        checks="after",
    ),
    Client(
        name="git",
        stack="C, libcurl with GnuTLS",
        argv=lambda url, tools: ["git", "-c", f"http.sslCAInfo={tools.ca}", "ls-remote", url],
        match=("process",),
        source="gnutls",
        checks="after",
    ),
    Client(
        name="wget2",
        stack="C, GnuTLS",
        argv=lambda url, tools: [
            "wget2", "--quiet", "--tries=1", f"--ca-certificate={tools.ca}",
            "--output-document=/dev/null", url,
        ],
        source="gnutls",
    ),
    Client(
        name="ab",
        stack="C, OpenSSL",
        argv=lambda url, tools: ["ab", "-n", "1", url],
        checks="never",
    ),
    Client(
        name="siege",
        stack="C, OpenSSL",
        argv=lambda url, tools: ["siege", "--quiet", "--reps=1", "--concurrent=1", url],
        checks="never",
    ),
    Client(
        name="h2load",
        stack="C++, OpenSSL",
        argv=lambda url, tools: ["h2load", "--h1", "-n1", "-c1", url],
        match=("process",),
        checks="never",
    ),
    Client(
        name="gnutls-cli",
        stack="C, GnuTLS",
        argv=lambda url, tools: [
            "gnutls-cli", f"--x509cafile={tools.ca}", "--port", _at(url)[1], _at(url)[0],
        ],
        source="gnutls",
        stdin=REQUEST,
    ),
    Client(
        name="socat",
        stack="C, OpenSSL",
        argv=lambda url, tools: [
            "socat", "-", f"OPENSSL:{_at(url)[0]}:{_at(url)[1]},cafile={tools.ca}",
        ],
        stdin=REQUEST,
    ),
    Client(
        name="ncat",
        stack="C, OpenSSL",
        argv=lambda url, tools: [
            "ncat", "--ssl-verify", "--ssl-trustfile", tools.ca, *_at(url),
        ],
        stdin=REQUEST,
    ),
    Client(
        name="busybox",
        stack="C, openssl in a child",
        argv=lambda url, tools: ["busybox", "wget", "-q", "-O", "/dev/null", url],
        source="wire",
    ),
)  # fmt: skip
