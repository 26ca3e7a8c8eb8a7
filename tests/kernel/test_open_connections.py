"""Connections that are open now: their live figures, and those older than the daemon."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from pathlib import Path

import jsonschema
import pytest

import conmon
from tests.lab.daemon import Daemon
from tests.lab.netns import namespace

pytestmark = pytest.mark.kernel("ip")
ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "docs/record.schema.json").read_text())


def cookie(sock):
    return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0]


def pair(family=socket.AF_INET, host="127.0.0.1"):
    with socket.create_server((host, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
    return client, accepted


def listening_pair(family=socket.AF_INET, host="127.0.0.1"):
    server = socket.create_server((host, 0), family=family)
    client = socket.create_connection(server.getsockname()[:2])
    accepted, _ = server.accept()
    return server, client, accepted


def tcp_info(sock):
    info = sock.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 256)
    rtt, rttvar = struct.unpack_from("=II", info, 68)
    (received,) = struct.unpack_from("=Q", info, 128)
    (sent,) = struct.unpack_from("=Q", info, 200)
    return {"rtt_us": rtt, "rttvar_us": rttvar, "bytes_sent": sent, "bytes_received": received}


def row_of(client, number):
    answer = client.get("/v1/connections")
    found = [row for row in answer["connections"] if row["id"].endswith(f"-{number:x}")]
    for row in answer["connections"]:
        plain = {k: v for k, v in row.items() if k not in ("tcp_state", "before_daemon")}
        jsonschema.validate(plain, RECORD)
    assert len(found) <= 1
    return found[0] if found else None


def totals(client):
    """Open, opened, sent and received of this process, whose other tests may hold sockets too."""
    rows = client.processes(pid=os.getpid())["processes"]
    assert len(rows) <= 1, "one row for one process"
    row = rows[0] if rows else dict.fromkeys(("open", "opened", "bytes_sent", "bytes_received"), 0)
    return [row[key] for key in ("open", "opened", "bytes_sent", "bytes_received")]


def figures(client):
    """How many are open: as listed, as summed up, as doctor says."""
    summed = client.processes(by="uid", limit=0)["processes"]
    listed = client.get("/v1/connections", limit=1)["total"]
    return listed, sum(row["open"] for row in summed), client.doctor()["open"]


def grown(now, before):
    return tuple(a - b for a, b in zip(now, before, strict=True))


def wait_for(what, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    return what()


def test_live_figures_are_what_the_socket_says():
    early, early_far = pair()
    daemon = Daemon("--json")
    client = conmon.Daemon(daemon.socket)
    # other tests' sockets are listed once one is that was there before
    assert wait_for(lambda: row_of(client, cookie(early)))
    before_all = totals(client)
    near, far = pair()
    other, other_far = pair(socket.AF_INET6, "::1")
    try:
        near.sendall(b"x" * 70_001)
        left = 70_001
        while left:
            left -= len(far.recv(left))
        far.sendall(b"y" * 333)
        near.recv(333, socket.MSG_WAITALL)
        other.sendall(b"z" * 17)
        time.sleep(0.05)
        before = tcp_info(near)
        row = row_of(client, cookie(near))
        assert before == tcp_info(near), "the socket is at rest"
        assert {key: row["tcp"][key] for key in before} == before
        assert (before["bytes_sent"], before["bytes_received"]) == (70_001, 333)
        assert row["tcp_state"] == "ESTABLISHED"
        assert row["before_daemon"] is False
        assert row_of(client, cookie(other))["tcp"]["bytes_sent"] == 17
        assert client.take(cookie(near)).tcp.bytes_sent == 70_001
        # the other side's FIN is no byte of payload
        far.close()
        row = wait_for(
            lambda: (r := row_of(client, cookie(near)))["tcp_state"] == "CLOSE_WAIT" and r
        )
        assert row["tcp"]["bytes_received"] == 333
        assert grown(totals(client), before_all) == (2, 2, 70_018, 333)
    finally:
        for sock in (near, far, other, other_far, early, early_far):
            sock.close()
        daemon.stop()


def test_connections_older_than_the_daemon_are_listed_until_they_end():
    with namespace() as netns:
        server, near, far = listening_pair()
        server6, near6, far6 = netns.call(lambda: listening_pair(socket.AF_INET6, "::1"))
        near.sendall(b"x" * 4321)
        far.sendall(b"y" * 99)
        time.sleep(0.05)
        daemon = Daemon("--json")
        client = conmon.Daemon(daemon.socket)
        try:
            row = wait_for(lambda: row_of(client, cookie(near)))
            assert row["before_daemon"] is True
            assert (row["pid"], row["uid"]) == (os.getpid(), os.getuid())
            assert row["comm"] == Path("/proc/self/comm").read_text().strip()
            assert row["exe"] == os.readlink("/proc/self/exe")
            assert (row["raddr"], row["rport"]) == near.getpeername()
            assert (row["laddr"], row["lport"]) == near.getsockname()
            assert (row["tcp"]["bytes_sent"], row["tcp"]["bytes_received"]) == (4321, 99)
            assert row["start"] is row["sockconn_us"] is row["dns"] is row["dns_disp"] is None
            assert row["attempts"] == []
            other = row_of(client, cookie(near6))
            assert (other["raddr"], other["netns"]) == ("::1", netns.inode)
            # accepted ones are the other side of these, not connections that were opened
            assert row_of(client, cookie(far)) is None
            assert row_of(client, cookie(far6)) is None
            open_before, opened_before, *_ = totals(client)
            assert open_before >= 2
            # of the whole host, where others connect, too
            assert wait_for(lambda: len(set(figures(client))) == 1)
            fresh = socket.create_connection(server.getsockname())
            assert row_of(client, cookie(fresh))["before_daemon"] is False
            # one row for the process, though /proc knows its start in hundredths of a second
            assert totals(client)[:2] == [open_before + 1, opened_before + 1]
            fresh.close()
            number = cookie(near)
            near.close()
            far.close()
            assert wait_for(lambda: row_of(client, number) is None, 15.0)
            assert row_of(client, cookie(near6)) is not None
        finally:
            for sock in (near, far, server, near6, far6, server6):
                sock.close()
            daemon.stop()


def test_what_begins_before_the_first_listing_is_there_is_told_once():
    server, early, early_far = listening_pair()
    daemon = Daemon("--json")
    client = conmon.Daemon(daemon.socket)
    try:
        fresh = [socket.create_connection(server.getsockname()) for _ in range(5)]
        ended = cookie(fresh[0])
        far = [server.accept()[0] for _ in fresh]
        fresh[1].sendall(b"x" * 1009)
        rows = wait_for(lambda: row_of(client, cookie(early)) and client.get("/v1/connections"))
        told = [row["id"] for row in rows["connections"]]
        assert len(set(told)) == len(told) == rows["total"]
        before = {row["id"].partition("-")[2]: row["before_daemon"] for row in rows["connections"]}
        assert before[f"{cookie(early):x}"] is True
        assert {before[f"{cookie(sock):x}"] for sock in fresh} == {False}
        open_all, opened, sent, _ = totals(client)
        older_sent = sum(
            row["tcp"]["bytes_sent"]
            for row in rows["connections"]
            if row["before_daemon"] and row["pid"] == os.getpid()
        )
        far[0].close()
        fresh[0].close()
        assert wait_for(lambda: row_of(client, ended) is None, 1.0), "older, once it has ended"
        assert totals(client)[:3] == [open_all - 1, opened, sent]
        mine = client.processes(pid=os.getpid(), since="1h")["processes"][0]
        assert mine["open"] == open_all - 1
        assert sent == 1009 + older_sent
    finally:
        for sock in (server, early, early_far, *fresh, *far):
            sock.close()
        daemon.stop()


def test_what_is_told_of_older_ones_is_never_older_than_five_seconds():
    server, near, far = listening_pair()
    daemon = Daemon("--json")
    client = conmon.Daemon(daemon.socket)
    try:
        assert wait_for(lambda: row_of(client, cookie(near)))
        far.sendall(b"y" * 1013)
        time.sleep(5.5)  # nobody asks meanwhile
        number = cookie(near)
        assert row_of(client, number)["tcp"]["bytes_received"] == 1013
        near.close()
        far.close()
        time.sleep(5.5)
        assert row_of(client, number) is None
    finally:
        for sock in (server, near, far):
            sock.close()
        daemon.stop()


def test_a_socket_that_is_connected_again_is_what_it_is_now():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sock:
        daemon = Daemon("--json")
        try:
            with pytest.raises(ConnectionRefusedError):
                sock.connect(("127.0.0.1", 1))
            number = cookie(sock)
            client = conmon.Daemon(daemon.socket)
            assert wait_for(lambda: conmon.take(sock, path=daemon.socket).state == "failed")
            before = conmon.take(sock, path=daemon.socket)
            sock.connect(server.getsockname())
            again = conmon.take(sock, path=daemon.socket)
            assert (again.state, again.rport) == ("open", server.getsockname()[1])
            assert client.record(again.id).state == "open"
            sock.shutdown(socket.SHUT_RDWR)
            server.accept()[0].close()
            assert wait_for(lambda: client.take(number).state == "closed")
            assert client.take(number).id == client.record(again.id).id == again.id != before.id
            assert client.record(before.id).error == "ECONNREFUSED"
        finally:
            daemon.stop()


def test_a_datagram_socket_that_changes_its_peer_has_an_id_for_each():
    ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    daemon = Daemon("--json")
    try:
        *peers, sock = ends
        for peer in peers:
            peer.bind(("127.0.0.1", 0))
            sock.connect(peer.getsockname())
            sock.send(b"x")
        sock.close()
        ports = {peer.getsockname()[1] for peer in peers}
        found = daemon.wait_for(lambda record: record["rport"] in ports, count=3)
        assert len({record["id"] for record in found}) == 3
        client = conmon.Daemon(daemon.socket)
        assert {client.record(record["id"]).rport for record in found} == ports
    finally:
        for each in ends:
            each.close()
        daemon.stop()


def test_the_newest_come_first_where_that_is_asked_for():
    server, early, early_far = listening_pair()
    daemon = Daemon("--json")
    client = conmon.Daemon(daemon.socket)
    try:
        fresh = [socket.create_connection(server.getsockname()) for _ in range(7)]
        assert wait_for(lambda: row_of(client, cookie(early)))
        newest = [f"{cookie(sock):x}" for sock in reversed(fresh)]
        for limit in (3, None):
            rows = client.connections(pid=os.getpid(), order="newest", limit=limit)
            assert [row.id.partition("-")[2] for row in rows][: limit or 7] == newest[:limit]
        assert rows[-1].start is None, "older than the daemon"
        # where records must be looked at, too
        rows = client.connections(comm=rows[0].comm, pid=os.getpid(), order="newest", limit=2)
        assert [row.id.partition("-")[2] for row in rows] == newest[:2]
        assert client.connections(pid=os.getpid(), limit=1)[0].start is None
    finally:
        for sock in (server, early, early_far, *fresh):
            sock.close()
        daemon.stop()
