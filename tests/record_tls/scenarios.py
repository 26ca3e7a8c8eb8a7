"""What is recorded. Each function runs one client against one server and notes what is true.

``truth``: ``response_ms`` is how long the answer took at least, by the server's wait and the
added round trip; ``request`` counts the client's data records before the one that begins the
request (HTTP/2's preface comes first); the rest are fields of the result.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.record_tls.lab import NODE_H2_CLIENT, Lab

UV = ("uv", "pip", "install", "--dry-run", "--no-cache", "--no-config", "--system")
SCENARIOS: dict[str, Callable[[Lab], None]] = {}


def scenario(function: Callable[[Lab], None]) -> Callable[[Lab], None]:
    SCENARIOS[function.__name__] = function
    return function


@scenario
def tls12_full(lab: Lab) -> None:
    """curl, TLS 1.2, full handshake with a ticket, one answer after 50 ms."""
    lab.serve(0.05)
    lab.truth = {"version": "TLSv1.2", "resumed": False, "response_ms": 50}
    lab.curl("--tls-max", "1.2")


@scenario
def tls12_resumed_ticket(lab: Lab) -> None:
    """openssl s_client resumes a TLS 1.2 session by ticket."""
    lab.serve(0.05)
    session = str(lab.folder / "session")
    lab.truth = {"version": "TLSv1.2", "resumed": True, "response_ms": 50}
    lab.s_client("-tls1_2", "-sess_out", session)
    lab.s_client("-tls1_2", "-sess_in", session)


@scenario
def tls12_resumed_id(lab: Lab) -> None:
    """openssl s_client resumes a TLS 1.2 session by its id; s_server has no tickets."""
    lab.openssl_server("-no_ticket")
    session = str(lab.folder / "session")
    lab.truth = {"version": "TLSv1.2", "resumed": True}
    lab.s_client("-tls1_2", "-no_ticket", "-sess_out", session)
    lab.s_client("-tls1_2", "-no_ticket", "-sess_in", session)


@scenario
def tls12_client_cert(lab: Lab) -> None:
    """curl, TLS 1.2 with a client certificate."""
    lab.serve(0.05, client_certificate=True)
    lab.truth = {"version": "TLSv1.2", "resumed": False, "response_ms": 50}
    lab.curl("--tls-max", "1.2", "--cert", lab.cert, "--key", lab.key)


@scenario
def tls12_cbc_keepalive(lab: Lab) -> None:
    """curl, TLS 1.2 with AES-CBC, two requests."""
    lab.serve([0.03, 0.06], ciphers="ECDHE-RSA-AES128-SHA")
    lab.truth = {"version": "TLSv1.2", "resumed": False, "response_ms": 30, "turns_ms": [30, 60]}
    lab.curl("--tls-max", "1.2", lab.url)


@scenario
def tls13_full(lab: Lab) -> None:
    """curl, TLS 1.3, the server answers at once."""
    lab.serve()
    lab.truth = {"version": "TLSv1.3", "resumed": False, "response_ms": 0, "tickets": 2}
    lab.curl()


@scenario
def tls13_wait(lab: Lab) -> None:
    """curl, TLS 1.3, tickets at once and the answer 200 ms later."""
    lab.serve(0.2)
    lab.truth = {"version": "TLSv1.3", "resumed": False, "response_ms": 200, "tickets": 2}
    lab.curl()


@scenario
def tls13_far(lab: Lab) -> None:
    """curl, TLS 1.3, a round trip of 40 ms, the answer at once."""
    lab.serve()
    lab.far_away(0.04)
    lab.truth = {"version": "TLSv1.3", "resumed": False, "response_ms": 40, "tickets": 2}
    lab.curl()


@scenario
def tls13_far_wait(lab: Lab) -> None:
    """curl, TLS 1.3, a round trip of 40 ms, the answer after 200 ms."""
    lab.serve(0.2)
    lab.far_away(0.04)
    lab.truth = {"version": "TLSv1.3", "resumed": False, "response_ms": 240, "tickets": 2}
    lab.curl()


@scenario
def tls13_slow_handshake(lab: Lab) -> None:
    """curl, TLS 1.3, the server takes 150 ms to its hello and 50 ms to answer."""
    lab.serve(0.05, tls_wait=0.15)
    lab.truth = {"version": "TLSv1.3", "resumed": False, "response_ms": 50, "handshake_ms": 150}
    lab.curl()


@scenario
def tls13_resumed(lab: Lab) -> None:
    """openssl s_client resumes a TLS 1.3 session; one new ticket, the answer after 200 ms."""
    lab.serve(0.2)
    session = str(lab.folder / "session")
    lab.truth = {"version": "TLSv1.3", "resumed": True, "response_ms": 200, "tickets": 1}
    lab.s_client("-sess_out", session, hold=0.5)
    lab.s_client("-sess_in", session, hold=0.5)


@scenario
def tls13_resumed_far(lab: Lab) -> None:
    """Python resumes over a round trip of 40 ms and sends its request at once."""
    lab.serve(0.1)
    lab.far_away(0.04)
    lab.truth = {"version": "TLSv1.3", "resumed": True, "response_ms": 140, "tickets": 1}
    context = ssl.create_default_context(cafile=lab.ca)
    context.keylog_filename = lab.keys
    session = None
    for _ in range(2):
        raw = socket.create_connection(("127.0.0.1", lab.port))
        tls = context.wrap_socket(raw, server_hostname="localhost", session=session)
        tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        tls.recv(1000)
        session = tls.session
        tls.close()


@scenario
def tls13_early_data(lab: Lab) -> None:
    """openssl s_client sends its request as early data to nginx, which takes it."""
    lab.nginx("ssl_early_data on;")
    session, early = str(lab.folder / "session"), lab.folder / "early"
    early.write_bytes(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    lab.truth = {"version": "TLSv1.3", "resumed": True, "early": True}
    lab.s_client("-sess_out", session)
    lab.s_client("-sess_in", session, "-early_data", str(early), send=b"")


@scenario
def tls13_early_data_far(lab: Lab) -> None:
    """Early data over a round trip of 40 ms."""
    lab.nginx("ssl_early_data on;")
    lab.far_away(0.04)
    session, early = str(lab.folder / "session"), lab.folder / "early"
    early.write_bytes(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    lab.truth = {"version": "TLSv1.3", "resumed": True, "early": True}
    lab.s_client("-sess_out", session)
    lab.s_client("-sess_in", session, "-early_data", str(early), send=b"")


@scenario
def tls13_early_data_refused(lab: Lab) -> None:
    """Early data to a server that resumes but does not take it; the request is sent again."""
    lab.nginx("ssl_early_data on;")
    session, early = str(lab.folder / "session"), lab.folder / "early"
    early.write_bytes(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    lab.s_client("-sess_out", session)
    lab.stack.pop_all().close()
    lab.nginx("")
    lab.truth = {"version": "TLSv1.3", "early": False}
    lab.s_client("-sess_in", session, "-early_data", str(early), send=early.read_bytes())


@scenario
def tls13_retry(lab: Lab) -> None:
    """A HelloRetryRequest: the server wants a group that the client sent no share for."""
    lab.serve(0.05, curve="secp384r1")
    lab.truth = {"version": "TLSv1.3", "resumed": False, "response_ms": 50, "retry": True}
    lab.curl("--curves", "X25519:P-384")


@scenario
def tls13_no_ccs(lab: Lab) -> None:
    """No middlebox compatibility: neither side sends a ChangeCipherSpec."""
    lab.openssl_server("-no_middlebox")
    lab.truth = {"version": "TLSv1.3", "resumed": False}
    lab.s_client("-no_middlebox")


@scenario
def tls13_retry_no_ccs(lab: Lab) -> None:
    """A HelloRetryRequest without middlebox compatibility."""
    lab.openssl_server("-no_middlebox", "-groups", "P-384")
    lab.truth = {"version": "TLSv1.3", "resumed": False, "retry": True}
    lab.s_client("-no_middlebox", "-groups", "X25519:P-384")


@scenario
def tls13_client_cert(lab: Lab) -> None:
    """curl with a client certificate, the answer after 50 ms."""
    lab.serve(0.05, client_certificate=True)
    lab.truth = {"version": "TLSv1.3", "resumed": False, "response_ms": 50}
    lab.curl("--cert", lab.cert, "--key", lab.key)


@scenario
def tls13_client_cert_missing(lab: Lab) -> None:
    """The server requires a client certificate and curl has none: an alert after Finished."""
    lab.serve(client_certificate=True)
    lab.truth = {"version": "TLSv1.3", "result": "alert"}
    lab.curl()


@scenario
def tls12_client_cert_missing(lab: Lab) -> None:
    """The same in TLS 1.2: an alert instead of the server's Finished."""
    lab.serve(client_certificate=True)
    lab.truth = {"version": "TLSv1.2", "result": "alert", "alert": "handshake_failure"}
    lab.curl("--tls-max", "1.2")


@scenario
def tls13_ccm8(lab: Lab) -> None:
    """TLS_AES_128_CCM_8_SHA256: a tag of 8 bytes."""
    lab.openssl_server("-ciphersuites", "TLS_AES_128_CCM_8_SHA256", "-cipher", "ALL:@SECLEVEL=0")
    lab.truth = {"version": "TLSv1.3", "cipher": "TLS_AES_128_CCM_8_SHA256"}
    lab.s_client("-ciphersuites", "TLS_AES_128_CCM_8_SHA256", "-cipher", "ALL:@SECLEVEL=0")


@scenario
def tls13_chacha(lab: Lab) -> None:
    """TLS_CHACHA20_POLY1305_SHA256."""
    lab.serve(0.05)
    lab.truth = {"version": "TLSv1.3", "response_ms": 50, "cipher": "TLS_CHACHA20_POLY1305_SHA256"}
    lab.curl("--tls13-ciphers", "TLS_CHACHA20_POLY1305_SHA256")


@scenario
def tls13_no_tickets(lab: Lab) -> None:
    """A server without tickets that answers after 50 ms."""
    lab.serve(0.05, num_tickets=0)
    lab.truth = {"version": "TLSv1.3", "response_ms": 50, "tickets": 0}
    lab.curl()


@scenario
def tls13_no_tickets_at_once(lab: Lab) -> None:
    """A server without tickets, far away, that answers at once in one record."""
    lab.serve(num_tickets=0)
    lab.far_away(0.04)
    lab.truth = {"version": "TLSv1.3", "response_ms": 40, "tickets": 0}
    lab.curl()


@scenario
def tls13_no_tickets_late_body(lab: Lab) -> None:
    """A server without tickets: its head after 60 ms, its body 100 ms later."""
    lab.serve(0.06, body_wait=0.1, num_tickets=0)
    lab.truth = {"version": "TLSv1.3", "response_ms": 60, "tickets": 0}
    lab.curl()


@scenario
def tls13_head_then_body(lab: Lab) -> None:
    """Two tickets, the head after 50 ms, the body 100 ms later."""
    lab.serve(0.05, body_wait=0.1)
    lab.truth = {"version": "TLSv1.3", "response_ms": 50, "tickets": 2}
    lab.curl()


@scenario
def tls13_idle_then_request(lab: Lab) -> None:
    """The client waits 100 ms after the handshake, so tickets come before its request."""
    lab.serve(0.05)
    lab.truth = {"version": "TLSv1.3", "response_ms": 50, "tickets": 2}
    lab.s_client()


@scenario
def tls13_keepalive(lab: Lab) -> None:
    """Three requests on one connection, answered after 50, 20 and 80 ms."""
    lab.serve([0.05, 0.02, 0.08])
    lab.truth = {"version": "TLSv1.3", "response_ms": 50, "tickets": 2, "turns_ms": [50, 20, 80]}
    lab.curl(lab.url, lab.url)


@scenario
def tls13_keepalive_no_tickets(lab: Lab) -> None:
    """Three requests to a server without tickets, answered after 5, 20 and 30 ms."""
    lab.serve([0.005, 0.02, 0.03], num_tickets=0)
    lab.truth = {"version": "TLSv1.3", "response_ms": 5, "tickets": 0, "turns_ms": [5, 20, 30]}
    lab.curl(lab.url, lab.url)


@scenario
def tls13_post(lab: Lab) -> None:
    """A POST with a body of 100 kB, the answer after 50 ms."""
    lab.serve(0.05)
    (lab.folder / "body").write_bytes(b"x" * 100_000)
    lab.truth = {"version": "TLSv1.3", "tickets": 2, "count": 1}
    lab.curl("--data-binary", f"@{lab.folder}/body", "-H", "Expect:")


@scenario
def tls13_post_far(lab: Lab) -> None:
    """The same over a round trip of 40 ms."""
    lab.serve(0.05)
    lab.far_away(0.04)
    (lab.folder / "body").write_bytes(b"x" * 100_000)
    lab.truth = {"version": "TLSv1.3", "tickets": 2, "count": 1}
    lab.curl("--data-binary", f"@{lab.folder}/body", "-H", "Expect:")


@scenario
def tls13_post_expect(lab: Lab) -> None:
    """A POST that waits for 100 Continue: two turns."""
    lab.serve(0.05)
    lab.truth = {"version": "TLSv1.3", "tickets": 2, "count": 2}
    lab.curl("--data-binary", "hello", "-H", "Expect: 100-continue")


@scenario
def tls13_download(lab: Lab) -> None:
    """An answer of 1 MB: the log fills."""
    lab.serve(0.05, body=b"x" * 1_000_000)
    lab.truth = {"version": "TLSv1.3", "response_ms": 50, "tickets": 2, "count": 1}
    lab.curl("-o", "/dev/null")


@scenario
def tls13_given_up(lab: Lab) -> None:
    """The client gives up after 200 ms, before any answer: the tickets are none."""
    lab.serve(5)
    lab.truth = {"version": "TLSv1.3", "tickets": 2, "count": 0}
    lab.curl("--max-time", "0.4")


@scenario
def h2_curl_node(lab: Lab) -> None:
    """curl over HTTP/2 to Node.js, which answers after 100 ms."""
    lab.node_server(100)
    lab.truth = {"version": "TLSv1.3", "h2": True, "request": 1, "response_ms": 100, "tickets": 2}
    lab.curl("--http2")


@scenario
def h2_curl_node_far(lab: Lab) -> None:
    """The same over a round trip of 40 ms."""
    lab.node_server(100)
    lab.far_away(0.04)
    lab.truth = {"version": "TLSv1.3", "h2": True, "request": 1, "response_ms": 140, "tickets": 2}
    lab.curl("--http2")


@scenario
def h2_curl_node_12(lab: Lab) -> None:
    """curl over HTTP/2 and TLS 1.2 to Node.js, which answers after 100 ms."""
    lab.node_server(100)
    lab.truth = {"version": "TLSv1.2", "h2": True, "request": 1, "response_ms": 100}
    lab.curl("--http2", "--tls-max", "1.2")


@scenario
def h2_node_node(lab: Lab) -> None:
    """Node.js over HTTP/2 to Node.js, which answers after 100 ms."""
    lab.node_server(100)
    lab.truth = {"version": "TLSv1.3", "h2": True, "response_ms": 100, "tickets": 2}
    lab.run("node", f"--tls-keylog={lab.keys}", "-e", NODE_H2_CLIENT, lab.ca, str(lab.port))


@scenario
def h2_curl_nginx(lab: Lab) -> None:
    """curl over HTTP/2 to nginx, far away, two requests."""
    lab.nginx(listen="ssl http2")
    lab.far_away(0.04)
    lab.truth = {
        "version": "TLSv1.3",
        "h2": True,
        "request": 1,
        "response_ms": 40,
        "tickets": 2,
        "turns_ms": [40, 40],
    }
    lab.curl("--http2", lab.url)


@scenario
def h2_offered_h1_chosen(lab: Lab) -> None:
    """curl offers h2, the server speaks HTTP/1.1 only."""
    lab.serve(0.1)
    lab.truth = {"version": "TLSv1.3", "h2": False, "response_ms": 100, "tickets": 2}
    lab.curl("--http2")


@scenario
def java_java(lab: Lab) -> None:
    """curl to a Java server: one ticket, the answer after 200 ms."""
    lab.java_server(200)
    lab.truth = {"version": "TLSv1.3", "response_ms": 200, "tickets": 1}
    lab.curl()
    lab.curl()


@scenario
def java_client(lab: Lab) -> None:
    """A Java client (HttpsURLConnection), the answer after 100 ms."""
    lab.serve(0.1)
    lab.truth = {"version": "TLSv1.3", "response_ms": 100, "tickets": 2}
    lab.java_client()


@scenario
def java_client_cert(lab: Lab) -> None:
    """A Java client with a client certificate."""
    lab.serve(0.1, client_certificate=True)
    lab.truth = {"version": "TLSv1.3", "response_ms": 100}
    lab.java_client()


@scenario
def java_client_h2(lab: Lab) -> None:
    """Java's HttpClient over HTTP/2 to Node.js, which answers after 100 ms."""
    lab.node_server(100)
    lab.truth = {"version": "TLSv1.3", "h2": True, "response_ms": 100, "tickets": 2}
    lab.java_client("trust", "h2")


@scenario
def java_rejects(lab: Lab) -> None:
    """A Java client that does not trust the certificate."""
    lab.serve()
    lab.truth = {"version": "TLSv1.3", "result": "rejected"}
    lab.java_client("distrust")


@scenario
def gnutls_client(lab: Lab) -> None:
    """gnutls-cli, the answer after 100 ms."""
    lab.serve(0.1)
    lab.truth = {"version": "TLSv1.3", "response_ms": 100, "tickets": 2}
    lab.run(
        *("gnutls-cli", "-p", str(lab.port), "--x509cafile", lab.ca, "localhost"),
        stdin=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )


@scenario
def gnutls_client_cert(lab: Lab) -> None:
    """gnutls-cli with a client certificate."""
    lab.serve(0.1, client_certificate=True)
    lab.truth = {"version": "TLSv1.3", "response_ms": 100}
    lab.run(
        *("gnutls-cli", "-p", str(lab.port), "--x509cafile", lab.ca, "--x509certfile", lab.cert),
        *("--x509keyfile", lab.key, "localhost"),
        stdin=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )


@scenario
def gnutls_server(lab: Lab) -> None:
    """curl to gnutls-serv."""
    lab.port = lab.free_port()
    lab.spawn(
        *("gnutls-serv", "--http", "-p", str(lab.port), "--x509certfile", lab.cert),
        *("--x509keyfile", lab.key),
    )
    lab.wait_listen(lab.port)
    lab.far_away(0.04)
    lab.truth = {"version": "TLSv1.3", "response_ms": 40}
    lab.curl()


@scenario
def wget_full(lab: Lab) -> None:
    """wget (GnuTLS), the answer after 100 ms."""
    lab.serve(0.1)
    lab.truth = {"version": "TLSv1.3", "response_ms": 100, "tickets": 2}
    lab.run("wget", "-q", "-O", "/dev/null", f"--ca-certificate={lab.ca}", lab.url)


@scenario
def nginx_far(lab: Lab) -> None:
    """curl to nginx over a round trip of 40 ms."""
    lab.nginx()
    lab.far_away(0.04)
    lab.truth = {"version": "TLSv1.3", "response_ms": 40, "tickets": 2}
    lab.curl()


@scenario
def rejected_13(lab: Lab) -> None:
    """curl does not trust the certificate, TLS 1.3: an encrypted alert."""
    lab.serve()
    lab.truth = {"version": "TLSv1.3", "result": "rejected"}
    lab.run("curl", "-sS", lab.url)


@scenario
def rejected_12(lab: Lab) -> None:
    """curl does not trust the certificate, TLS 1.2: unknown_ca in the clear."""
    lab.serve()
    lab.truth = {"version": "TLSv1.2", "result": "rejected", "alert": "unknown_ca"}
    lab.run("curl", "-sS", "--tls-max", "1.2", lab.url)


@scenario
def rejected_gnutls(lab: Lab) -> None:
    """gnutls-cli does not trust the certificate."""
    lab.serve()
    lab.truth = {"version": "TLSv1.3"}
    lab.run("gnutls-cli", "-p", str(lab.port), "localhost")


@scenario
def rejected_node(lab: Lab) -> None:
    """Node.js checks the certificate after the handshake and closes."""
    lab.serve()
    lab.truth = {"version": "TLSv1.3"}
    lab.run("node", f"--tls-keylog={lab.keys}", "-e", f"require('https').get('{lab.url}')")


@scenario
def alert_version(lab: Lab) -> None:
    """The server takes TLS 1.3 only and the client offers 1.2."""
    lab.serve(minimum_version=ssl.TLSVersion.TLSv1_3)
    lab.truth = {"result": "alert", "alert": "protocol_version"}
    lab.curl("--tls-max", "1.2")


@scenario
def alert_cipher(lab: Lab) -> None:
    """No cipher suite in common."""
    lab.serve(ciphers="ECDHE-RSA-AES128-GCM-SHA256")
    lab.truth = {"result": "alert", "alert": "handshake_failure"}
    lab.curl("--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES256-GCM-SHA384")


@scenario
def closed_after_hello(lab: Lab) -> None:
    """The server reads the ClientHello and closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    lab.port = listener.getsockname()[1]

    def serve() -> None:
        conn = listener.accept()[0]
        conn.recv(4096)
        conn.close()

    threading.Thread(target=serve, daemon=True).start()
    lab.truth = {"result": "incomplete"}
    lab.curl()
    listener.close()


@scenario
def closed_after_server_flight(lab: Lab) -> None:
    """The client closes after the server's flight, with no alert."""
    lab.serve()
    lab.truth = {"version": "TLSv1.3", "result": "incomplete"}
    context = ssl.create_default_context(cafile=lab.ca)
    context.keylog_filename = lab.keys
    inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(inbound, outbound, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    with socket.create_connection(("127.0.0.1", lab.port)) as raw:
        raw.sendall(outbound.read())
        time.sleep(0.1)
        raw.recv(65536)


@scenario
def rustls_client(lab: Lab) -> None:
    """uv (rustls) asks for a package index over HTTP/1.1, the answer after 100 ms."""
    lab.serve(0.1)
    lab.truth = {"version": "TLSv1.3", "response_ms": 100, "tickets": 2}
    lab.run(*UV, "--default-index", lab.url, "nothing", SSL_CERT_FILE=lab.ca)


@scenario
def rustls_client_h2(lab: Lab) -> None:
    """uv (rustls) over HTTP/2 to Node.js, which answers after 100 ms."""
    lab.node_server(100)
    lab.truth = {"version": "TLSv1.3", "h2": True, "request": 2, "response_ms": 100, "tickets": 2}
    lab.run(*UV, "--default-index", lab.url, "nothing", SSL_CERT_FILE=lab.ca)


@scenario
def rustls_rejects(lab: Lab) -> None:
    """uv (rustls) does not trust the certificate."""
    lab.serve()
    lab.truth = {"version": "TLSv1.3", "result": "rejected"}
    lab.run(*UV, "--default-index", lab.url, "nothing")
