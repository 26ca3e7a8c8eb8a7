"""TLS in its less common ways: early data, a second ClientHello, client certificates."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time

import pytest

from tests.clients.expectations import Within
from tests.lab import world
from tests.lab.programs import PYTHON, Curl
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("curl", "ip", "node", "openssl", "wget")

HELLO_S, ANSWER_S = 0.090, 0.110


def retrying(lab):
    """A server that takes none of the key shares that clients send unasked."""
    context = lab.tls("1.3")
    context.set_ecdh_curve("secp521r1")
    return Behaviour(tls=context, response_delay_s=ANSWER_S)


RETRIED = {
    "curl": lambda lab, url: ["curl", "-s", "-w", "%{json}", "-o", "/dev/null", "--cacert",
                              str(lab.ca_file), url],
    "wget": lambda lab, url: ["wget", "-q", "-O", "-", f"--ca-certificate={lab.ca_file}", url],
    "python": lambda lab, url: ["env", f"SSL_CERT_FILE={lab.ca_file}", PYTHON, "-c",
                                f"import urllib.request as u; u.urlopen({url!r}).read()"],
    "node": lambda lab, url: ["env", f"NODE_EXTRA_CA_CERTS={lab.ca_file}", "node", "-e",
                              f"require('https').get({url!r}, a => a.resume())"],
    "hey": lambda lab, url: ["hey", "-n", "1", "-c", "1", url],
}  # fmt: skip


@pytest.mark.parametrize("program", list(RETRIED))
def test_a_second_client_hello(lab, watch, program):
    site = lab.serve(retrying(lab), world.FAR4)
    seen = watch.run(RETRIED[program](lab, f"https://{world.FAR4}:{site.port}/"))
    record = seen.record
    assert record["tls"]["result"] == "ok"
    assert (record["tls"]["version"], record["tls"]["resumed"]) == ("TLSv1.3", False)
    assert record["tls"]["cipher"].startswith("TLS_")
    witness = site.witness(world.FAR4, record["lport"])
    assert witness.tls_version == "TLSv1.3"
    # two round trips, and what both compute: P-521 takes Go and Python's server 15 ms each
    assert 2 * world.RTT_US <= record["tls_us"] < 2 * world.RTT_US + 80_000
    assert record["txn_resp_us"] == Within(ANSWER_S * 1e6 + world.RTT_US)
    if program == "curl":
        said = json.loads(seen.done.stdout)
        shaken = (said["time_appconnect"] - said["time_connect"]) * 1e6
        assert record["tls_us"] <= shaken


def mutual(lab, version, required=True):
    context = lab.tls(version)
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    context.load_verify_locations(lab.client_ca_file)
    return Behaviour(tls=context, response_delay_s=ANSWER_S)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_certificate(lab, watch, version):
    site = lab.serve(mutual(lab, version), world.FAR4)
    own = ["--cert", str(lab.client.cert), "--key", str(lab.client.key)]
    argv = Curl(lab).to_urls(f"https://{world.FAR4}:{site.port}/", tls=version, options=own)
    record = watch.run(argv).record
    assert (record["state"], record["tls"]["result"]) == ("closed", "ok")
    trips = 1 if version == "1.3" else 2
    assert trips * world.RTT_US <= record["tls_us"] < trips * world.RTT_US + 30_000
    assert record["txn_resp_us"] == Within(ANSWER_S * 1e6 + world.RTT_US)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_certificate_that_is_missing(lab, watch, version):
    site = lab.serve(mutual(lab, version), world.FAR4)
    argv = Curl(lab).to_urls(f"https://{world.FAR4}:{site.port}/", tls=version)
    seen = watch.run(argv)
    record = seen.record
    assert seen.done.code != 0
    assert (record["state"], record["error"]) == ("failed", "EPROTO")
    assert record["tls"]["result"] == "alert"
    assert record["txn_resp_us"] is None


def test_early_data(lab, watch, tmp_path):
    port = lab.free_port()
    server = lab.there.popen(
        ["openssl", "s_server", "-accept", f"{world.FAR4}:{port}", "-cert", str(lab.trusted.cert),
         "-key", str(lab.trusted.key), "-tls1_3", "-early_data", "-no_anti_replay"],
        stdin=subprocess.PIPE,
    )  # fmt: skip
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(server.stdout), daemon=True)
    reader.start()

    def connected(count):
        for _ in range(200):
            if sum("CIPHER is" in line for line in said) >= count:
                return
            time.sleep(0.02)
        raise AssertionError(said)

    # the server answers what it has got half a second later, and hangs up
    def answer(count):
        connected(count)
        time.sleep(0.5)
        for line in ("answer\n", "q\n"):
            server.stdin.write(line)
            server.stdin.flush()
            time.sleep(0.2)  # each is looked at when it has been read alone

    asked = tmp_path / "request"
    asked.write_text("GET / HTTP/1.0\r\n\r\n")
    session = tmp_path / "session"
    client = ["openssl", "s_client", "-connect", f"{world.FAR4}:{port}", "-ign_eof"]
    try:
        for _ in range(100):
            if any("ACCEPT" in line for line in said):
                break
            time.sleep(0.02)
        for count, options in ((1, ["-sess_out"]), (2, ["-early_data", str(asked), "-sess_in"])):
            thread = threading.Thread(target=answer, args=(count,))
            thread.start()
            seen = watch.run([*client, *options, str(session)])
            thread.join()
    finally:
        server.kill()
        server.wait()
        reader.join()
        server.stdin.close()
        server.stdout.close()
        server.stderr.close()
    record = seen.record
    assert "Early data was accepted" in seen.done.stdout
    assert (record["tls"]["result"], record["tls"]["resumed"]) == ("ok", True)
    assert world.RTT_US <= record["tls_us"] < 2 * world.RTT_US
    # the request left with the ClientHello, the answer half a second after the handshake
    assert 500_000 + world.RTT_US <= record["txn_resp_us"] < 650_000
