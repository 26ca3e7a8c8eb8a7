"""conmon.watch() and python -m conmon run: right records, and a program that notices nothing."""

from __future__ import annotations

import _socket
import asyncio
import http.server
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import httpx
import jsonschema
import pytest
import requests

import conmon
from tests.lab import certs

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "docs/record.schema.json").read_text())
DELAY_S = 0.03


class Slow(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        time.sleep(DELAY_S)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    context = None

    def finish_request(self, request, client_address):
        if self.context is not None:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)
        request.close()

    def handle_error(self, *_):
        pass


def start(context=None):
    server = Server(("127.0.0.1", 0), Slow)
    server.context = context
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return certs.make_authority(tmp_path_factory.mktemp("ca"), ["localhost", "127.0.0.1"])


@pytest.fixture(scope="module")
def plain():
    server = start()
    yield f"http://localhost:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def secure(authority):
    server = start(authority[1].context())
    yield f"https://localhost:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def by_urllib(url, ca):
    context = ssl.create_default_context(cafile=ca) if ca else None
    with urllib.request.urlopen(url, context=context, timeout=5) as answer:
        return answer.read()


def by_requests(url, ca):
    with requests.Session() as session:
        return session.get(url, verify=str(ca) if ca else None, timeout=5).content


def by_httpx(url, ca):
    with httpx.Client(verify=ssl.create_default_context(cafile=ca)) as client:
        return client.get(url).content


def by_httpx_async(url, ca):
    async def ask():
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=ca)) as client:
            return (await client.get(url)).content

    return asyncio.run(ask())


def by_aiohttp(url, ca):
    async def ask():
        context = ssl.create_default_context(cafile=ca)
        async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as answer:
            return await answer.read()

    return asyncio.run(ask())


def by_streams(url, ca):
    async def ask():
        secure = url.startswith("https")
        context = ssl.create_default_context(cafile=ca) if secure else None
        port = int(url.rsplit(":", 1)[1].strip("/"))
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return data[-5:]

    return asyncio.run(ask())


PROGRAMS = [by_urllib, by_requests, by_httpx, by_httpx_async, by_aiohttp, by_streams]


def check(record):
    jsonschema.Draft202012Validator(RECORD).validate(json.loads(record.to_json()))
    return record


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("tls", [False, True])
def test_a_request_has_its_record(program, tls, plain, secure, authority):
    url, ca = (secure, authority[0]) if tls else (plain, None)
    with conmon.watch() as records:
        assert program(url, ca) == b"hello"
    (record,) = map(check, records)
    assert (record.state, record.host, record.peer) == ("closed", "localhost", "127.0.0.1")
    assert record.dns == ("127.0.0.1",) or set(record.dns) == {"127.0.0.1", "::1"}
    assert record.dns_us is not None
    assert 0 <= record.sockconn_us < 100_000
    assert record.prot_specific["resp"] == 200
    assert DELAY_S * 1e6 <= record.txn_resp_us < DELAY_S * 1e6 + 100_000
    assert record.turns.count == 1
    assert record.attempts[-1].result == "ok"
    assert record.duration_us >= record.txn_resp_us
    if tls:
        assert (record.tls.result, record.tls.version) == ("ok", "TLSv1.3")
        assert (record.tls.sni, record.tls.source) == ("localhost", "openssl")
        assert 0 < record.tls_us < 500_000
    else:
        assert record.tls is record.tls_us is None


@pytest.mark.parametrize("program", PROGRAMS)
def test_refused_rejected_and_nameless(program, secure, authority, monkeypatch):
    resolve = _socket.getaddrinfo

    def no_such_name(host, *rest):  # nothing is asked outside this machine
        if host in ("none.invalid", b"none.invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *rest)

    monkeypatch.setattr(_socket, "getaddrinfo", no_such_name)
    with conmon.watch() as records:
        for url in ("http://localhost:1/", secure, "http://none.invalid/"):
            if program is by_streams and "none" in url:
                continue
            with pytest.raises(Exception) as caught:
                program(url, None)
            assert not isinstance(caught.value, (AttributeError, TypeError))
    by_error = {check(record).error: record for record in records}
    assert by_error["ECONNREFUSED"].attempts[0].result == "refused"
    assert by_error["ECONNREFUSED"].host == "localhost"
    assert by_error["EPROTO"].tls.result == "rejected"
    if program is not by_streams:
        assert {error for error in by_error if error.startswith("EAI_")}
    assert all(record.state == "failed" for record in records)


def everything():
    classes = (socket.socket, ssl.SSLSocket, ssl.SSLObject)
    modules = [(m, n) for m in (socket, _socket) for n in
               ("getaddrinfo", "gethostbyname", "gethostbyname_ex")]  # fmt: skip
    return [dict(vars(one)) for one in classes], [getattr(m, n) for m, n in modules]


def test_all_is_as_before_afterwards(plain):
    before = everything()
    with conmon.watch(), conmon.watch():
        assert everything() != before
        by_urllib(plain, None)
    assert everything() == before
    with pytest.raises(ZeroDivisionError), conmon.watch():
        raise ZeroDivisionError
    assert everything() == before


def test_nested_watches_see_what_happens_in_them(plain):
    with conmon.watch() as outer:
        by_urllib(plain, None)
        with conmon.watch() as inner:
            by_urllib(plain, None)
    assert (len(outer), len(inner)) == (2, 1)


def test_results_and_errors_pass_through(plain):
    def probe():
        seen = []
        with socket.socket() as sock:
            sock.setblocking(False)
            seen.append(sock.connect_ex(("127.0.0.1", 1)))
            for call in (lambda: sock.connect("nonsense"), lambda: sock.recv(-1),
                         lambda: sock.connect(("127.0.0.1", 70_000)), lambda: sock.send("text"),
                         lambda: socket.getaddrinfo("x" * 70, 1)):  # fmt: skip
                with pytest.raises(Exception) as caught:
                    call()
                seen.append((type(caught.value), str(caught.value)))
        one, other = socket.socketpair()
        with one, other:
            seen.append(one.send(b"abc"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(("127.0.0.1", 1))
            seen.append(datagrams.getpeername())
        return seen

    expected = probe()
    with conmon.watch():
        assert probe() == expected


@pytest.mark.parametrize("positional", [(), (5,), (5, 6, 7)])
def test_every_wrapped_function_hands_on_what_it_is_given(monkeypatch, positional):
    with conmon.watch():
        wrapped = [(owner, name) for owner, name, _, _ in conmon.watching._watcher._restore]
    assert len(wrapped) > 20
    seen = []

    def original(*given, **named):
        seen.append((given, named))
        return 0

    objects = {
        socket.socket: socket.socket(),
        ssl.SSLSocket: ssl.create_default_context().wrap_socket(
            socket.socket(), server_hostname="x"
        ),
        ssl.SSLObject: ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x"
        ),
    }
    calls = []
    with monkeypatch.context() as patch:
        for owner, name in wrapped:
            patch.setattr(owner, name, original)
        with conmon.watch():
            for owner, name in wrapped:
                own = (objects[owner],) if owner in objects else ()
                calls.append(((*own, *positional), {"sock": 1, "host": None, "anything": 2}))
                getattr(owner, name)(*calls[-1][0], **calls[-1][1])
    for one in (socket.socket, ssl.SSLSocket):
        objects[one].close()
    assert seen == calls


def test_keywords_are_taken_as_ever_and_seen(secure, authority, plain):
    context = ssl.create_default_context(cafile=authority[0])
    ask = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with conmon.watch() as records:
        port = int(plain.rsplit(":", 1)[1].strip("/"))
        assert socket.getaddrinfo(host="localhost", port=port)
        with socket.create_connection(("localhost", port)) as sock:
            sock.send(ask)
            buffer = bytearray(20)
            assert sock.recv_into(buf := bytearray(4), nbytes=4) == 4
            assert sock.recv_into(buffer=buffer, nbytes=8, flags=0) == 8
            assert bytes(buf + buffer[:8]) == b"HTTP/1.1 200"
            with pytest.raises(TypeError):
                sock.recv(bufsize=4)
        port = int(secure.rsplit(":", 1)[1].strip("/"))
        sock = socket.create_connection(("localhost", port))
        with context.wrap_socket(
            sock, server_hostname="localhost", do_handshake_on_connect=False
        ) as sock:
            sock.do_handshake(block=True)
            sock.send(data=ask[:4], flags=0)
            sock.write(data=ask[4:])
            assert sock.read(len=4) == b"HTTP"
            assert sock.read(len=8, buffer=buffer) == 8
            assert bytes(buffer[:8]) == b"/1.1 200"
            with pytest.raises(TypeError):
                sock.read(size=4)
        with socket.create_connection(("localhost", port)) as sock:
            beside(sock, context, ask)
    assert len(records) == 3
    for record in records:
        check(record)
        assert record.host == "localhost"
        assert record.txn_resp_us >= DELAY_S * 1e6 / 2
    assert [record.tls is not None for record in records] == [False, True, True]


def beside(sock, context, ask):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def until(call):
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(4096))

    until(tls.do_handshake)
    tls.write(data=ask)
    sock.sendall(outgoing.read())
    assert until(lambda: tls.read(len=4)) == b"HTTP"
    buffer = bytearray(8)
    assert until(lambda: tls.read(len=8, buffer=buffer)) == 8


def test_what_is_open_at_the_end_is_told_as_open(plain):
    port = int(plain.rsplit(":", 1)[1].strip("/"))
    with conmon.watch() as records:
        sock = socket.create_connection(("127.0.0.1", port))
        assert records == []
        assert conmon.take(sock, path="/nonexistent").state == "open"
    assert [(record.state, record.host) for record in records] == [("open", None)]
    sock.close()


def test_a_socket_that_is_dropped_ends(plain):
    port = int(plain.rsplit(":", 1)[1].strip("/"))
    with conmon.watch() as records:
        sock = socket.socket()
        sock.connect(("127.0.0.1", port))
        with pytest.warns(ResourceWarning):
            del sock
    assert [record.state for record in records] == ["closed"]


def test_the_next_address_is_another_attempt(plain, monkeypatch):
    port = int(plain.rsplit(":", 1)[1].strip("/"))
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
             for address in ("127.9.9.9", "127.0.0.1")]  # fmt: skip
    monkeypatch.setattr(_socket, "getaddrinfo", lambda *_: found)
    with conmon.watch() as records:
        socket.create_connection(("two.example", port)).close()
    (record,) = records
    assert [one.result for one in record.attempts] == ["refused", "ok"]
    assert (record.host, record.peer, record.dns) == (
        "two.example", "127.0.0.1", ("127.9.9.9", "127.0.0.1"),
    )  # fmt: skip


def test_threads_are_kept_apart(plain):
    with conmon.watch() as records:
        threads = [threading.Thread(target=by_urllib, args=(plain, None)) for _ in range(13)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(records) == 13
    assert len({record.id for record in records}) == 13
    assert {record.host for record in records} == {"localhost"}
    assert len({record.tid for record in records}) > 1


def test_no_more_than_asked_for_is_kept(plain):
    with conmon.watch(most=2) as records:
        for _ in range(5):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", 1))
    assert (len(records), records.dropped) == (2, 3)


SCRIPT = """
import multiprocessing, subprocess, sys, urllib.request

def ask():
    urllib.request.urlopen(sys.argv[1]).read()

if __name__ == "__main__":
    ask()
    subprocess.run([sys.executable, "-c", "import sys, urllib.request as u; u.urlopen(sys.argv[1])",
                    sys.argv[1]], check=True)
    child = multiprocessing.get_context("spawn").Process(target=ask)
    child.start()
    child.join()
    print("its own output", sys.argv[2:])
    sys.exit(7)
"""


def run(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "conmon", "run", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **more,
    )  # fmt: skip


def test_run_times_a_program_and_its_children(plain, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "records"
    script.write_text(SCRIPT)
    done = run("--json", out, script, plain, "--flag", "x")
    assert (done.returncode, done.stdout) == (7, "its own output ['--flag', 'x']\n")
    assert done.stderr == ""
    records = [conmon.Record.from_json(line) for line in out.read_bytes().splitlines()]
    assert len(records) == 3
    assert len({record.pid for record in records}) == 3
    assert all(record.prot_specific["resp"] == 200 for record in records)
    done = run(script, plain)
    assert done.returncode == 7
    assert done.stderr.count("localhost") == 3


def test_run_a_module_and_what_cannot_be_run(plain, tmp_path):
    (tmp_path / "mod.py").write_text("import sys; print(__name__, sys.argv[1:]); 1 / 0")
    done = run("-m", "mod", "a", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.stdout == "__main__ ['a']\n"
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    for name in ("none.py", tmp_path / "none.py"):
        done = run(name)
        assert done.returncode == 2
        assert done.stderr == f"conmon: cannot read {name}: No such file or directory\n"
    assert run().returncode == 2


def test_a_script_that_misses_a_file_of_its_own_says_so_itself(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"raise FileNotFoundError(2, 'its own', {str(script)!r})")
    done = run(script)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


LATE = """
import atexit, concurrent.futures, sys, threading, time, urllib.request

def ask(*_):
    time.sleep(0.3)
    urllib.request.urlopen(sys.argv[1]).read()

url = sys.argv[1]
threading.Thread(target=ask).start()
concurrent.futures.ThreadPoolExecutor().submit(ask)
atexit.register(ask)
"""


@pytest.mark.parametrize(("last", "code"), [("", 0), ("sys.exit(3)", 3), ("1 / 0", 1)])
def test_run_waits_for_all_that_python_waits_for(plain, tmp_path, last, code):
    script, out = tmp_path / "script.py", tmp_path / "records"
    script.write_text(LATE + last)
    done = run("--json", out, script, plain)
    assert done.returncode == code
    records = [conmon.Record.from_json(line) for line in out.read_bytes().splitlines()]
    assert [record.prot_specific["resp"] for record in records] == [200] * 3
    assert done.stderr.count("Error") == (last == "1 / 0")
    assert run(script, plain).stderr.count("localhost") == 3


def test_a_process_that_forked_shows_what_all_did_once(plain, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nchild = os.fork()\n" + LATE + "if child: os.waitpid(child, 0)"
    )
    assert run(script, plain).stderr.count("RESPONSE") == 1
    assert run(script, plain).stderr.count("localhost") == 6


def test_the_sitecustomize_that_was_there_still_is(plain, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.was_here = True")
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(was_here)'])"
    (tmp_path / "main.py").write_text(code)
    done = run(tmp_path / "main.py", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.stdout == "True\n"


def test_an_address_that_nobody_was_seen_to_look_up(plain):
    port = int(plain.rsplit(":", 1)[1].strip("/"))
    with conmon.watch() as records, socket.socket() as sock:
        sock.connect(("127.0.0.1", port))
    (record,) = records
    assert (record.host, record.dns_disp, record.dns_source) == (None, None, None)


def test_a_handshake_that_the_program_gives_up_is_not_laid_on_the_server():
    with socket.create_server(("127.0.0.1", 0)) as silent, conmon.watch() as records:
        sock = socket.create_connection(silent.getsockname())
        sock.setblocking(False)
        context = ssl.create_default_context()
        secured = context.wrap_socket(
            sock, server_hostname="localhost", do_handshake_on_connect=False
        )
        with pytest.raises(ssl.SSLWantReadError):
            secured.do_handshake()
        secured.close()
    (record,) = records
    assert (record.state, record.tls.result, record.error) == ("failed", "failed", "ECANCELED")


def test_the_end_of_an_inner_watch_does_not_end_a_race_under_way(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                 for address in ("127.9.9.9", "127.0.0.1")]  # fmt: skip
        monkeypatch.setattr(_socket, "getaddrinfo", lambda *_: found)
        with conmon.watch() as outer:
            first, second = socket.socket(), socket.socket()
            socket.getaddrinfo("two.example", port)
            second.setblocking(False)
            assert second.connect_ex(("127.0.0.1", port)) != 0  # in progress
            with pytest.raises(ConnectionRefusedError):
                first.connect(("127.9.9.9", port))
            with conmon.watch() as inner:
                pass
            second.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            first.close()
            second.close()
    assert inner == []
    (record,) = outer
    assert record.state == "closed"
    assert sorted(one.result for one in record.attempts) == ["ok", "refused"]
