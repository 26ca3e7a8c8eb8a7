"""Runs every program of the fleet some times over a link of 40 ms and writes docs/accuracy.md."""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.expectations import IANA_CIPHERS
from tests.clients.watch import Watch
from tests.lab import world
from tests.lab.daemon import Daemon
from tests.lab.fleet import FLEET, Client, Tools
from tests.lab.programs import PROGRAMS, Program
from tests.lab.servers import Behaviour, Witness

ROOT = Path(__file__).resolve().parents[2]
DNS_S, HELLO_S, RESPONSE_S = 0.060, 0.080, 0.120
ONE_WAY_S = 0.020
TIMES = ("dns_us", "sockconn_us", "tls_us", "txn_resp_us")
AIM_US, AIM = 100, 0.01

INTRODUCTION = """\
# Accuracy

Written by `make accuracy`: every program makes HTTPS requests under conmond, through a link whose \
round trip is {rtt_us:,} µs (a TUN device between two network namespaces holds each packet for \
half of it), to a resolver that waits {dns_ms:g} ms and a server that waits {hello_ms:g} ms before \
its first TLS reply and {response_ms:g} ms before its response.

What a figure is held against, none of it conmond's:

| field | truth |
|---|---|
| `dns_us` | the resolver's own clock, from the first question's arrival to the last answer |
| `sockconn_us` | the link's own clock at the client's end, from SYN to SYN-ACK |
| `tls_us` | the server's own clock, from the ClientHello's arrival to that of the client's \
Finished (TLS 1.2: and a round trip, since there the client ends with the server's Finished) |
| `txn_resp_us` | the server's own clock, from the request's first byte to the response, and a \
round trip |
| host, peer, DNS answers, SNI, TLS version, cipher, result, state | what was asked for and what \
the server negotiated |

An error is conmond's figure less the truth, in µs: median, and the 99th percentile of its amount \
(with so few runs, the largest). It holds what the truth does not see: for `dns_us` the caller's \
own work in its C library (files read, sockets made) and the way to the resolver's thread; for \
`tls_us` and `txn_resp_us` the lateness of the link's relay, a process (0.2 ms each way), and the \
way from the kernel to the server's Python; for `tls_us` in a library its work before the \
ClientHello leaves and after the Finished. *wrong* counts fields that differ, *missing* those that \
are null.

Two rows look odd and are right. GnuTLS sends its Finished in a segment that Nagle's algorithm \
holds back until the one before it is acknowledged: the library is done a round trip before the \
server hears of it, and `tls_us` is the library's. wget2 asks for TCP Fast Open and lets GnuTLS \
connect within its handshake call; its clock starts when the connection stands.
"""


@dataclass
class Row:
    """All runs of one program."""

    name: str
    stack: str
    runs: int = 0
    errors: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMES})
    truths: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMES})
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A program, whichever list it comes from."""

    name: str
    stack: str
    tls: str
    argv: Callable[[str, int], list[str]]
    stdin: Callable[[str], str | None]


def subjects(lab: world.Lab, tools: Tools) -> Iterator[Subject]:
    """The programs that every field of is tested, then the fleet."""
    stacks = {
        "curl": "C, OpenSSL", "wget": "C, GnuTLS", "urllib": "Python, OpenSSL",
        "asyncio": "Python, OpenSSL by memory BIO", "node": "JavaScript, OpenSSL",
        "node-fetch": "JavaScript, OpenSSL", "openssl": "C, OpenSSL",
    }  # fmt: skip

    def of_program(program: Program) -> Subject:
        return Subject(
            program.name, stacks[program.name], "1.3",
            lambda host, port: program.argv(host, port, "1.3"), program.stdin,
        )  # fmt: skip

    def of_client(client: Client) -> Subject:
        return Subject(
            client.name, client.stack, client.tls,
            lambda host, port: client.argv(f"https://{host}:{port}/", tools),
            lambda host: client.stdin,
        )  # fmt: skip

    for program in PROGRAMS:
        yield of_program(program(lab))
    for client in FLEET:
        yield of_client(client)


def truth_of(seen: Witness, waited_us: float, connected: float) -> dict[str, float]:
    """What the times should be."""
    rtt_us = 2e6 * ONE_WAY_S
    request = seen.requests[0]
    assert seen.tls_done_ns and seen.hello_ns and request.response_ns
    last_flight_us = rtt_us if seen.tls_version == "TLSv1.2" else 0
    return {
        "dns_us": waited_us,
        "sockconn_us": connected,
        "tls_us": (seen.tls_done_ns - seen.hello_ns) / 1e3 + last_flight_us,
        "txn_resp_us": (request.response_ns - request.first_byte_ns) / 1e3 + rtt_us,
    }


def connected_us(folder: str, port: int) -> float:
    """From the newest SYN of a port to its SYN-ACK, as the link saw them."""
    times: dict[str, int] = {}
    for line in Path(folder, "link").read_text(encoding="ascii").splitlines():
        kind, of, at_ns = line.split()
        if int(of) == port:
            times[kind] = int(at_ns)
    return (times["SYN-ACK"] - times["SYN"]) / 1e3


def compare(
    row: Row, record: dict[str, Any], seen: Witness, host: str, truths: dict[str, float]
) -> None:
    """Add one run."""
    row.runs += 1
    for name, truth in truths.items():
        if record[name] is None:
            row.missing.append(name)
        else:
            row.errors[name].append(record[name] - truth)
            row.truths[name].append(truth)
    tls = record["tls"] or {}
    facts = {
        "host": (record["host"], host),
        "peer": (record["peer"], world.FAR4),
        "dns": (record["dns"], [world.FAR4]),
        "sni": (tls.get("sni"), seen.sni),
        "version": (tls.get("version"), seen.tls_version),
        "cipher": (tls.get("cipher"), IANA_CIPHERS.get(seen.tls_cipher or "", seen.tls_cipher)),
        "result": (tls.get("result"), "ok"),
        "resumed": (tls.get("resumed"), seen.tls_resumed),
        "state": (record["state"], "closed"),
    }
    for name, (got, want) in facts.items():
        if got is None:
            row.missing.append(name)
        elif got != want:
            row.wrong.append(f"{name}: {got!r}, not {want!r}")


def measure(count: int) -> list[Row]:
    """Run everything."""
    world.ONE_WAY_S, world.RTT_US = ONE_WAY_S, round(2e6 * ONE_WAY_S)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        open(Path(folder, "link"), "w+b") as notes,
        world.Lab(Path(folder), link_notes=notes) as lab,
    ):
        os.chmod(folder, 0o755)
        tools = Tools(str(lab.ca_file), Path(folder))
        sites = {
            version: lab.serve(
                Behaviour(tls=lab.tls(version), hello_delay_s=HELLO_S, response_delay_s=RESPONSE_S),
                world.FAR4,
            )
            for version in ("1.2", "1.3")
        }
        daemon = Daemon()
        watch = Watch(lab, daemon)
        for subject in subjects(lab, tools):
            row = Row(subject.name, subject.stack)
            rows.append(row)
            site = sites[subject.tls]
            for number in range(count + 1):
                host = lab.name(
                    f"{subject.name.replace('_', '-')}-{number}", world.FAR4, delay_s=DNS_S
                )
                argv = subject.argv(host, site.port)
                env = {"HOME": folder, "SSL_CERT_FILE": tools.ca, "NODE_EXTRA_CA_CERTS": tools.ca}
                seen = watch.run(
                    argv, stdin=subject.stdin(host), env={**env, "NO_COLOR": "1"},
                    wanted=lambda r, port=site.port: r["rport"] == port, timeout_s=40,
                )  # fmt: skip
                if number:  # the first run fills the program's caches
                    record = seen.record
                    witness = site.witness(world.FAR4, record["lport"])
                    waited_us = lab.resolver.waited_us(host)
                    truth = truth_of(witness, waited_us, connected_us(folder, record["lport"]))
                    compare(row, record, witness, host, truth)
            print(f"{subject.name}: {row.wrong or 'right'}", file=sys.stderr, flush=True)
        daemon.stop()
    return rows


def percentile(values: list[float], share: float) -> float:
    """The value that so many do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(rows: list[Row]) -> Iterator[str]:
    """The document."""
    yield INTRODUCTION.format(
        rtt_us=round(2e6 * ONE_WAY_S),
        dns_ms=DNS_S * 1e3,
        hello_ms=HELLO_S * 1e3,
        response_ms=RESPONSE_S * 1e3,
    )
    yield f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}."
    yield ""
    yield (
        "| program | stack | n | "
        + " | ".join(f"`{name}`" for name in TIMES)
        + " | wrong | missing |"
    )
    yield "|---|---|---|" + "---|" * (len(TIMES) + 2)
    for row in rows:
        cells = []
        for name in TIMES:
            errors = row.errors[name]
            if errors:
                most = percentile([abs(error) for error in errors], 0.99)
                cells.append(f"{statistics.median(errors):+,.0f} / {most:,.0f}")
            else:
                cells.append("-")
        wrong = "; ".join(sorted(set(row.wrong))) or "0"
        missing = ", ".join(sorted(set(row.missing))) or "0"
        row_cells = (row.name, row.stack, str(row.runs), *cells, wrong, missing)
        yield f"| {' | '.join(row_cells)} |"
    yield ""
    yield "All programs together:"
    yield ""
    yield "| field | n | median error | 99th percentile | median within 1 % or 100 µs |"
    yield "|---|---|---|---|---|"
    for name in TIMES:
        errors = [error for row in rows for error in row.errors[name]]
        truths = [truth for row in rows for truth in row.truths[name]]
        median = statistics.median(errors)
        allowed = max(AIM_US, AIM * statistics.median(truths))
        met = sum(
            abs(statistics.median(row.errors[name]))
            <= max(AIM_US, AIM * statistics.median(row.truths[name]))
            for row in rows
            if row.errors[name]
        )
        most = percentile([abs(error) for error in errors], 0.99)
        yield (
            f"| `{name}` | {len(errors)} | {median:+,.0f} µs | {most:,.0f} µs | "
            f"{'yes' if abs(median) <= allowed else 'no'}; of {met} of {len(rows)} programs |"
        )
    yield ""
    yield f"Fields that were wrong: {sum(len(row.wrong) for row in rows)}; "
    yield f"missing: {sum(len(row.missing) for row in rows)}."


def main() -> int:
    """Measure, and write the document where it belongs."""
    parser = argparse.ArgumentParser(prog="accuracy", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="requests of each program (10)")
    given = parser.parse_args()
    if os.geteuid():
        print("accuracy: must run as root, as conmond does", file=sys.stderr)
        return 1
    text = "\n".join(table(measure(given.runs))) + "\n"
    (ROOT / "docs/accuracy.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
