"""conmond as a process: how it starts, what it refuses, how it ends, and that nothing stays."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from monitor import daemon
from monitor.errors import SourceError
from monitor.kernel.kernel import Kernel
from monitor.options import HistoryOptions, Options, Serve, StatsLimits
from tests.lab.daemon import CONMOND, ROOT, Daemon, DaemonError, children_of, is_alive
from tests.lab.netns import CLEAN_ENV

pytestmark = pytest.mark.kernel("bpftool", "mount", "setpriv", "umount", "unshare")

GONE_WAIT_S = 5.0  # the kernel frees programs and links a little after their last descriptor
END_WAIT_S = 15.0
LWS_KEYS = {
    "peer", "dns", "dns_us", "dns_disp", "sockconn_us", "tls_us", "txn_resp_us", "prot_specific",
}  # fmt: skip


def bpf_objects():
    """What bpftool finds loaded, as {(kind, id)}, and each program attached to a cgroup."""
    found = set()
    for kind in ("prog", "link", "map"):
        listing = subprocess.run(
            ["bpftool", "--json", kind, "list"], capture_output=True, text=True, check=True
        ).stdout
        found |= {(kind, entry["id"]) for entry in json.loads(listing or "[]")}
    cgroup2 = cgroup2_mount()
    if cgroup2:
        tree = subprocess.run(
            ["bpftool", "--json", "cgroup", "tree", cgroup2],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        found |= {
            ("cgroup", program["id"])
            for group in json.loads(tree or "[]")
            for program in group["programs"]
        }
    return found


def cgroup2_mount():
    """Where the cgroup2 tree is mounted, None where it is not."""
    for line in Path("/proc/self/mounts").read_text(encoding="ascii").splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return place
    return None


def poll(condition, wait_s=GONE_WAIT_S):
    """Whether ``condition()`` comes true in time."""
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Listener:
    """Loopback connections of this process, for records to be made of."""

    def __init__(self):
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.sock.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                self.sock.accept()[0].close()

    def connect(self, count=1):
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", self.port)) as sock:
                sock.recv(1)

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(timeout=5)


@pytest.fixture
def listener():
    made = Listener()
    yield made
    made.close()


def run_to_end(argv, wait_s=END_WAIT_S):
    """Run conmond where it must not stay; its result."""
    return subprocess.run(
        argv,
        cwd=ROOT,
        env=CLEAN_ENV,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=wait_s,
        check=False,
    )


def assert_one_sentence(text, *words):
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word.lower() in lines[0].lower()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_stays_loaded(listener, how):
    before = bpf_objects()
    running = Daemon()
    listener.connect()
    running.wait_for(lambda record: record["rport"] == listener.port)
    ours = bpf_objects() - before
    assert {kind for kind, _ in ours} >= {"prog", "map"}
    children = children_of(running.process.pid)
    getattr(running, how)()
    assert poll(lambda: not ours & bpf_objects()), ours & bpf_objects()
    assert poll(lambda: not any(is_alive(child) for child in children))


@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_nothing_stays_when_it_ends_while_starting(number, after_s):
    before = bpf_objects()
    process = subprocess.Popen(
        CONMOND, cwd=ROOT, env=CLEAN_ENV,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(after_s)
    children = children_of(process.pid)
    process.send_signal(number)
    words = process.communicate(timeout=END_WAIT_S)[1]
    assert "Traceback" not in words
    assert poll(lambda: not any(is_alive(child) for child in children))
    assert poll(lambda: not bpf_objects() - before), bpf_objects() - before


def test_sigterm_writes_what_is_pending(listener):
    running = Daemon()
    listener.connect(23)
    running.stop()
    assert len(running.records(lambda record: record["rport"] == listener.port)) == 23


def test_ends_by_itself():
    started = time.monotonic()
    done = run_to_end([*CONMOND, "--for", "1"])
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stderr.splitlines()
    assert time.monotonic() - started >= 1


def test_interrupt_ends_with_130():
    running = Daemon()
    running.process.send_signal(signal.SIGINT)
    assert running.wait() == 130
    assert "Traceback" not in running.stderr


@pytest.mark.parametrize(
    "options",
    [["--no-such-flag"], ["--for", "soon"], ["--for", "-1"], ["--format", "xml"]],
    ids=" ".join,
)
def test_wrong_usage(options):
    done = run_to_end([*CONMOND, *options])
    assert done.returncode == 2
    assert done.stdout == ""
    assert_one_sentence(done.stderr)


def test_lws_form_has_the_eight_keys(listener):
    running = Daemon("--format", "lws")
    listener.connect()
    time.sleep(0.5)
    running.stop()
    forms = running.records()
    assert forms
    assert all(set(form) <= LWS_KEYS and "peer" in form for form in forms)


def test_quiet_prints_nothing(listener):
    running = Daemon("--quiet")
    listener.connect()
    running.stop()
    assert running.records() == []


def test_several_daemons_side_by_side(listener):
    running = [Daemon(), Daemon()]
    listener.connect(5)
    for one in running:
        one.wait_for(lambda record: record["rport"] == listener.port, 5)
    for one in running:
        one.stop()


class TestStdout:
    """A reader that goes away, stalls, or whose disk is full."""

    @staticmethod
    def start(stdout):
        process = subprocess.Popen(
            CONMOND, cwd=ROOT, env=CLEAN_ENV,
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        words = []
        for line in process.stderr:
            words.append(line)
            if line == "ready\n":
                return process, words
        pytest.fail(f"conmond ended: {words}")

    @staticmethod
    def end(process, words, codes=(0,)):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=END_WAIT_S)[1]
        said = "".join(words) + rest
        assert process.returncode in codes, said
        assert "Traceback" not in said
        assert "Exception" not in said
        return said

    def test_reader_goes_away(self, listener):
        reading, writing = os.pipe()
        process, words = self.start(writing)
        os.close(writing)
        os.close(reading)
        listener.connect(50)
        time.sleep(1)
        self.end(process, words)

    def test_reader_stalls_and_comes_back(self, listener):
        reading, writing = os.pipe()
        process, words = self.start(writing)
        os.close(writing)
        listener.connect(1000)  # far more than a pipe holds
        time.sleep(1)
        assert process.poll() is None
        lines = []
        with os.fdopen(reading, encoding="utf-8") as stream:
            reader = threading.Thread(target=lambda: lines.extend(stream))
            reader.start()
            listener.connect(10)
            time.sleep(1)
            self.end(process, words)
            reader.join(timeout=5)
        ports = [json.loads(line)["rport"] for line in lines]  # whole lines only
        assert ports.count(listener.port) >= 10

    def test_reader_stalls_for_good(self, listener):
        reading, writing = os.pipe()
        process, words = self.start(writing)
        os.close(writing)
        listener.connect(1000)
        time.sleep(1)
        self.end(process, words, codes=(0, 1))
        os.close(reading)

    def test_disk_is_full(self, listener):
        with open("/dev/full", "w", encoding="utf-8") as full:
            process, words = self.start(full)
        listener.connect(50)
        time.sleep(1)
        said = self.end(process, words, codes=(0, 1))
        assert said.count("space") <= 1  # said once, not once a record


class TestMissing:
    """A machine that lacks something: one sentence and the end, or less and a warning."""

    @staticmethod
    def hidden(path):
        # A private mount namespace in which ``path`` is an empty folder.
        return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {path} && exec "$@"', "sh"]

    def test_no_root(self):
        # It may read everything, so that it is rights over the kernel alone that it lacks.
        nobody = [
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
        ]  # fmt: skip
        done = run_to_end([*nobody, *CONMOND])
        assert done.returncode in (1, 4)
        assert done.stdout == ""
        assert_one_sentence(done.stderr, "root")

    def test_root_without_the_right_to_bpf(self):
        done = run_to_end(["setpriv", "--bounding-set=-bpf,-sys_admin", *CONMOND])
        assert done.returncode == 1
        assert_one_sentence(done.stderr, "bpf")

    def test_no_btf(self):
        done = run_to_end([*self.hidden("/sys/kernel/btf"), *CONMOND])
        assert done.returncode == 1
        assert_one_sentence(done.stderr, "BTF")

    def test_no_cgroup2(self, listener):
        without = ["unshare", "--mount", "sh", "-c", f'umount -l {cgroup2_mount()} && exec "$@"']
        running = Daemon(prefix=[*without, "sh"])
        listener.connect()
        [record] = running.wait_for(lambda record: record["rport"] == listener.port)
        running.stop()
        assert record["sockconn_us"] is not None
        assert running.stderr.count("cgroup2") == 1

    def test_no_uprobes(self, listener):
        running = Daemon(prefix=self.hidden("/sys/bus/event_source"))
        listener.connect()
        [record] = running.wait_for(lambda record: record["rport"] == listener.port)
        running.stop()
        assert record["sockconn_us"] is not None
        warnings = [line for line in running.stderr.splitlines() if "uprobe" in line.lower()]
        assert len(warnings) == 1


MEMORY = """
import os, sys
program = os.memfd_create(sys.argv[1])
os.write(program, open("/bin/bash", "rb").read())
os.execve(program, ["x", "-c", sys.argv[2]], {})
"""


def test_programs_of_any_path_are_named_however_soon_they_end(listener, tmp_path):
    """One from memory, one whose name is as long as a name can be, one deep down."""
    longest = tmp_path / ("n" * 255)
    deep = tmp_path.joinpath(*(f"{number:03}" + "d" * 57 for number in range(20)), "b")
    many = tmp_path.joinpath(*"abcdefghij" * 3, "program")
    wanted = {"/memfd:made in memory", f"/memfd:{'m' * 249}"}
    for path in (longest, deep, many):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/bash", path)
        wanted.add(str(path))
    running = Daemon()
    script = f"exec 3<>/dev/tcp/127.0.0.1/{listener.port}"
    for path in (longest, deep, many):
        subprocess.run([path, "-c", script], check=True)
    for name in ("made in memory", "m" * 249):
        subprocess.run([sys.executable, "-c", MEMORY, name, script], check=True)
    found = running.wait_for(lambda record: record["rport"] == listener.port, count=5)
    running.stop()
    assert {record["exe"] for record in found} == wanted


def test_a_start_that_fails_half_way_leaves_nothing_open(tmp_path):
    other = socket.create_server(("127.0.0.1", 0))
    path, port = str(tmp_path / "s"), other.getsockname()[1]
    options = Options(
        live=False, inbound=False, cmdlines=False, duration_s=None,
        serve=Serve(path=path, insist=True, group="root", max_clients=8, rate=99,
                    metrics_listen=("127.0.0.1", port)),
        stats=StatsLimits(max_processes=9, max_hosts=9),
        history=HistoryOptions(folder=str(tmp_path / "h"), max_age_s=99, max_bytes=10**8),
    )  # fmt: skip

    def open_files():
        return {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{name}")}  # fmt: skip

    reading, writing = os.pipe()
    try:
        kernel = Kernel.open()
        threads, files = set(threading.enumerate()), open_files()
        with pytest.raises(SourceError, match="cannot listen"):
            daemon.Daemon(options, None, kernel, daemon._Stop(reading))
        assert {name for name in open_files() if name not in files} == set()
        assert set(threading.enumerate()) == threads
        assert not os.path.exists(path)
        kernel.close()
    finally:
        os.close(reading)
        os.close(writing)
        other.close()


def test_failed_start_is_reported_by_the_lab():
    with pytest.raises(DaemonError, match="exit 2"):
        Daemon("--no-such-flag")
