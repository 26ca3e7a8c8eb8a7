"""Record real TLS connections into tests/data/tls. Needs root, tcpdump and tshark.

    python -m tests.record_tls [NAME ...]

Each scenario runs a real client against a real server on loopback (some through a proxy that
adds a round trip), captures the packets, and writes NAME.json: the record log and hellos as
the kernel side would note them, and as a second witness what tshark found in each record after
decrypting it with the session keys (h20 = Finished, h4 = NewSessionTicket, app = data ...).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.record_tls.capture import connections, labels
from tests.record_tls.lab import Lab, certificates
from tests.record_tls.scenarios import SCENARIOS

DATA = Path(__file__).resolve().parent.parent / "data" / "tls"
LOG_MAX = 32  # RECORD_LOG_MAX in bpf/event.h


@contextmanager
def sniffed(folder: Path) -> Iterator[Path]:
    pcap = folder / "all.pcap"
    pcap.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            "tcpdump",
            "-i",
            "lo",
            "-s",
            "0",
            "-B",
            "8192",
            "--immediate-mode",
            "-U",
            "-w",
            str(pcap),
            "tcp",
        ],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    process.stderr.readline()
    time.sleep(0.2)
    try:
        yield pcap
    finally:
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.wait()


def record(name: str, folder: Path) -> None:
    with ExitStack() as stack:
        lab = Lab(folder, stack)
        Path(lab.keys).write_text("")
        with sniffed(folder) as pcap:
            SCENARIOS[name](lab)
        data = pcap.read_bytes()
        conn = connections(data, lab.port)[lab.take]
        log = conn["log"]
        found = labels(pcap, lab.keys, lab.port, conn["port"])
    by_side = {rx: [w for r, w in found if r is rx] for rx in (False, True)}
    for rx, seen in by_side.items():
        noted = sum(1 for e in log if e[3] is rx)
        if len(seen) != noted:
            print(f"{name}: tshark sees {len(seen)} records, not {noted}", file=sys.stderr)
    words = [by_side[bool(e[3])].pop(0) if by_side[bool(e[3])] else "?" for e in log]
    out: dict[str, Any] = {
        "about": SCENARIOS[name].__doc__,
        "rtt_us": conn.get("rtt_us"),
        "flags": conn["flags"],
        "truth": lab.truth,
        "log_full": len(log) > LOG_MAX,
        "client_hello": bytes(conn["client_hello"]).hex(),
        "server_hello": bytes(conn["server_hello"]).hex(),
        "log": [[*e, w] for e, w in zip(log[:LOG_MAX], words, strict=False)],
    }
    # The hellos end where their handshake messages do: the rest is of no use here.
    for side, rx in (("client_hello", False), ("server_hello", True)):
        size = 0
        for e in log:
            if e[3] is rx:
                if e[2] not in (21, 22):
                    break
                size += 5 + int(e[1])
        out[side] = str(out[side])[: 2 * size]
    text = json.dumps({k: v for k, v in out.items() if k != "log"}, indent=1)[:-2]
    rows = ",\n  ".join(json.dumps(e) for e in out["log"])
    (DATA / f"{name}.json").write_text(f'{text},\n "log": [\n  {rows}\n ]\n}}\n')
    print(f"{name}: {len(log)} records")


def main(names: list[str]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="tls-record-"))
    try:
        certificates(Lab(folder, ExitStack()))
        for name in names or SCENARIOS:
            record(name, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
