"""First answers and greetings of protocols that speak in their own order, by programs of theirs."""

from __future__ import annotations

import json
import sys

import pytest

from tests.clients.expectations import Between, Within
from tests.lab import world
from tests.lab.dialogue import Dialogue, Hear, Say, Secure
from tests.lab.programs import Curl

pytestmark = pytest.mark.client("curl", "ip", "ssh")

GREETING_S, HELLO_S, ANSWER_S = 0.120, 0.090, 0.070
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"


def after(delay_s):
    """A wait of the server's, and the way there and back."""
    return Between(
        delay_s * 1e6 + world.RTT_US,
        delay_s * 1.05e6 + world.RTT_US + world.LINK_LATE_US,
    )


@pytest.fixture
def talk(lab):
    """Serve one script; the port."""
    open_ones = []

    def serve(*steps):
        dialogue = Dialogue(lab.there, world.FAR4, lab.free_port(), steps)
        open_ones.append(dialogue)
        return dialogue.port

    yield serve
    for dialogue in open_ones:
        dialogue.close()


def test_ssh_where_both_sides_speak_first(watch, talk):
    port = talk(Say(b"SSH-2.0-lab\r\n", GREETING_S), Hear(), Hear(100), Say(bytes(64), ANSWER_S))
    argv = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-p", str(port), world.FAR4]
    record = watch.run(argv).record
    # the server begins to wait when the connection stands there, half a round trip after here
    assert record["greeting_us"] == after(GREETING_S)
    assert record["txn_resp_us"] == after(ANSWER_S)
    assert record["turns"]["count"] == 1


MYSQL_GREETING = (
    b"\x0a8.0.0-lab\0" + bytes(4) + b"saltsalt\0" + b"\x01\x8a\xff\x02\0\x08\0\x15" + bytes(10)
    + b"saltsaltsalt\0" + b"mysql_native_password\0"
)  # fmt: skip
MYSQL_DENIED = b"\xff\x15\x04#28000nobody is let in"
MYSQL = """
import pymysql, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[3])
try:
    pymysql.connect(host=sys.argv[1], port=int(sys.argv[2]), user="a", password="b", ssl=context)
except pymysql.err.OperationalError as exc:
    print(exc.args[0])
"""


def packet(number, payload):
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


def test_mysql_whose_client_hello_follows_its_request_at_once(lab, watch, talk):
    host = lab.name("mysql", world.FAR4)
    port = talk(
        Say(packet(0, MYSQL_GREETING), GREETING_S), Hear(36), Secure(lab.tls("1.3"), HELLO_S),
        Hear(4), Say(packet(3, MYSQL_DENIED), ANSWER_S),
    )  # fmt: skip
    seen = watch.run([sys.executable, "-c", MYSQL, host, str(port), str(lab.ca_file)])
    assert seen.done.stdout == "1045\n"  # the server's own word, through TLS
    record = seen.record
    assert (record["state"], record["host"]) == ("closed", host)
    assert record["greeting_us"] == after(GREETING_S)
    assert (record["tls"]["result"], record["tls"]["version"]) == ("ok", "TLSv1.3")
    assert record["tls"]["sni"] == host
    assert record["tls_us"] == after(HELLO_S)
    assert record["txn_resp_us"] == after(ANSWER_S)


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    path = tmp_path_factory.mktemp("upload") / "file"
    path.write_bytes(bytes(1_500_000))
    return path


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_an_upload_over_tls_is_one_turn(lab, watch, talk, upload, version):
    host = lab.name("upload", world.FAR4)
    size = upload.stat().st_size
    context = lab.tls(version)
    port = talk(Secure(context), Hear(b"\r\n\r\n"), Hear(size), Say(CREATED, ANSWER_S))
    curl = Curl(lab)
    options = ["--upload-file", str(upload), "--header", "Expect:", "--http1.1"]
    seen = watch.run(curl.to_urls(f"https://{host}:{port}/", options=options))
    record, said = seen.record, json.loads(seen.done.stdout)
    assert record["tcp"]["bytes_sent"] > size
    # curl 7.88 takes an upload's begin for its answer
    assert record["txn_resp_us"] == Within((said["time_total"] - said["time_pretransfer"]) * 1e6)
    assert record["turns"] == {
        "count": 1,
        "sum_us": record["txn_resp_us"],
        "max_us": record["txn_resp_us"],
    }


@pytest.mark.parametrize("interim", [b"100 Continue", b"103 Early Hints\r\nLink: </style.css>"])
def test_an_interim_answer_is_not_the_answers_status(lab, watch, talk, upload, interim):
    size = upload.stat().st_size
    port = talk(
        Hear(b"\r\n\r\n"), Say(b"HTTP/1.1 %s\r\n\r\n" % interim), Hear(size), Say(CREATED, ANSWER_S)
    )
    url = f"http://{world.FAR4}:{port}/"
    record = watch.run(Curl(lab).to_urls(url, options=["--upload-file", str(upload)])).record
    assert record["prot_specific"] == {
        "protocol": "http",
        "resp": 201,
        "method": "PUT",
        "version": "1.1",
    }
    assert record["txn_resp_us"] >= ANSWER_S * 1e6 + world.RTT_US
    assert record["txn_source"] == "plain"


BYTE_BY_BYTE = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"GET / HTTP/1.0\\r\\n\\r\\n":
        sock.send(bytes([byte]))
    while sock.recv(99):
        pass
"""


def test_a_request_and_an_answer_written_byte_by_byte(watch, talk):
    answer = [Say(bytes([byte]), 0.001) for byte in b"HTTP/1.0 204 No Content\r\n\r\n"]
    port = talk(Hear(b"\r\n\r\n"), *answer)
    record = watch.run([sys.executable, "-c", BYTE_BY_BYTE, world.FAR4, str(port)]).record
    assert record["prot_specific"] == {
        "protocol": "http",
        "resp": 204,
        "method": "GET",
        "version": "1.0",
    }
