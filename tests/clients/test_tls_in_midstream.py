"""TLS that begins in mid-stream: STARTTLS of five protocols and CONNECT, by programs of theirs."""

from __future__ import annotations

import pytest

from tests.clients.expectations import Within
from tests.lab import world
from tests.lab.dialogue import Answer, Dialogue, Hear, Say, Secure
from tests.lab.programs import PYTHON

pytestmark = pytest.mark.client("curl", "hey", "ip", "ldapsearch", "psql", "swaks", "wget")

GREETING_S, HELLO_S, ANSWER_S = 0.120, 0.090, 0.070
LDAP_OK = "300c0201{id:02x}{op}070a010004000400"


def mail(word, ready, offer, go, done):
    """A protocol of lines: its greeting, its offer, its answer to STARTTLS, and to all else."""

    def reply(line):
        tag = line.split(b" ")[0] if word == b"imap" else b""
        return done.replace(b"TAG", tag)

    return lambda context: [
        Say(ready, GREETING_S), *([Hear(), Say(offer)] if offer else []), Hear(), Say(go),
        Secure(context, HELLO_S), Answer(reply, ANSWER_S),
    ]  # fmt: skip


def ldap(context):
    def ok(number, op):
        return Say(bytes.fromhex(LDAP_OK.format(id=number, op=op)), ANSWER_S if number > 1 else 0)

    return [
        Hear(31), ok(1, "78"), Secure(context, HELLO_S), Hear(14), ok(2, "61"), Hear(30),
        ok(3, "65"), Hear(7),
    ]  # fmt: skip


def postgresql(context):
    fatal = b"SFATAL\0VFATAL\0C28000\0Mnobody is let in\0\0"
    return [
        Hear(8), Say(b"S"), Secure(context, HELLO_S), Hear(b"\0\0"),
        Say(b"E" + (len(fatal) + 4).to_bytes(4) + fatal, ANSWER_S),
    ]  # fmt: skip


SMTP = mail(
    b"smtp", b"220 lab ESMTP\r\n", b"250-lab\r\n250 STARTTLS\r\n", b"220 go\r\n", b"250 ok\r\n"
)
IMAP = mail(b"imap", b"* OK lab\r\n", b"* CAPABILITY IMAP4rev1 STARTTLS\r\nA001 OK done\r\n",
            b"A002 OK go\r\n", b"TAG OK done\r\n")  # fmt: skip
POP3 = mail(b"pop3", b"+OK lab\r\n", b"+OK\r\nSTLS\r\n.\r\n", b"+OK go\r\n", b"-ERR no\r\n")
FTP = mail(b"ftp", b"220 lab\r\n", None, b"234 go\r\n", b"530 no\r\n")


def curl(scheme):
    return lambda lab, port: [
        "curl", "-s", "-k", "--ssl-reqd", "--max-time", "5", "--noproxy", "*",
        f"{scheme}://{world.FAR4}:{port}/",
    ]  # fmt: skip


# name: (script, greets, program)
PROGRAMS = {
    "smtp-curl": (SMTP, True, curl("smtp")),
    "smtp-swaks": (
        SMTP, True,
        lambda lab, port: ["swaks", "--server", f"{world.FAR4}:{port}", "--tls", "--helo", "lab",
                           "--to", "a@lab", "--from", "b@lab", "--quit-after", "RCPT"],
    ),
    "imap-curl": (IMAP, True, curl("imap")),
    "pop3-curl": (POP3, True, curl("pop3")),
    "ftp-curl": (FTP, True, curl("ftp")),
    "ldap-ldapsearch": (
        ldap, False,
        lambda lab, port: ["env", "LDAPTLS_REQCERT=never", "ldapsearch", "-x", "-ZZ", "-H",
                           f"ldap://{world.FAR4}:{port}", "-b", "", "-s", "base"],
    ),
    "postgresql-psql": (
        postgresql, False,
        lambda lab, port: ["env", "PGGSSENCMODE=disable", "psql", "-w",
                           f"host={world.FAR4} port={port} user=x dbname=x sslmode=require"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_starttls(lab, watch, name, version):
    script, greets, program = PROGRAMS[name]
    port = lab.free_port()
    server = Dialogue(lab.there, world.FAR4, port, script(lab.tls(version)))
    try:
        seen = watch.run(program(lab, port))
    finally:
        server.close()
    record = seen.record
    rtt = world.RTT_US
    assert record["tls"]["result"] == "ok"
    assert record["tls"]["version"] == f"TLSv{version}"
    trips = 1 if version == "1.3" else 2
    assert record["tls_us"] == Within(HELLO_S * 1e6 + trips * rtt)
    assert record["txn_resp_us"] == Within(ANSWER_S * 1e6 + rtt)
    assert record["state"] == "closed"
    if greets:
        assert record["greeting_us"] == Within(GREETING_S * 1e6 + rtt)
    else:
        assert record["greeting_us"] is None


TUNNELLED = {
    "curl": lambda lab, proxy, url: ["curl", "-s", "--cacert", str(lab.ca_file), "-x", proxy, url],
    "wget": lambda lab, proxy, url: [
        "env", f"https_proxy={proxy}", "wget", "-q", "-O", "-", f"--ca-certificate={lab.ca_file}",
        url,
    ],
    "python": lambda lab, proxy, url: [
        "env", f"https_proxy={proxy}", f"SSL_CERT_FILE={lab.ca_file}", PYTHON, "-c",
        f"import urllib.request as u; u.urlopen({url!r}).read()",
    ],
    "hey": lambda lab, proxy, url: ["hey", "-n", "1", "-c", "1", "-x", proxy, url],
}  # fmt: skip


@pytest.mark.parametrize("program", list(TUNNELLED))
def test_connect_through_a_proxy(lab, watch, program):
    # the proxy answers CONNECT and is then the server itself
    head = b"\r\n\r\n"
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    steps = [
        Hear(head), Say(b"HTTP/1.1 200 Connection established\r\n\r\n", GREETING_S),
        Secure(lab.tls("1.3"), HELLO_S), Hear(head), Say(body, ANSWER_S),
    ]  # fmt: skip
    port = lab.free_port()
    server = Dialogue(lab.there, world.FAR4, port, steps)
    try:
        host = f"behind.{world.DOMAIN}"
        url = f"https://{host}/"
        seen = watch.run(TUNNELLED[program](lab, f"http://{world.FAR4}:{port}", url))
    finally:
        server.close()
    record = seen.record
    assert (record["raddr"], record["rport"]) == (world.FAR4, port)
    assert (record["tls"]["result"], record["tls"]["sni"]) == ("ok", host)
    assert record["tls_us"] == Within(HELLO_S * 1e6 + world.RTT_US)
    assert record["txn_resp_us"] == Within(ANSWER_S * 1e6 + world.RTT_US)
    assert record["greeting_us"] is None
    # CONNECT itself is the first turn
    assert record["turns"]["count"] == 2
    assert record["turns"]["max_us"] == Within(GREETING_S * 1e6 + world.RTT_US)
    assert record["prot_specific"] is None
