"""Record logs of TLS connections, made up for the tests."""

from __future__ import annotations

import dataclasses

from monitor.wire.handshake import Wire, analyze
from monitor.wire.hello import ClientHello, ServerHello

CCS, ALERT, HS, APP = 20, 21, 22, 23

CLIENT = ClientHello(
    legacy_version=0x0303,
    versions=(0x0304, 0x0303),
    session_id=b"",
    ciphers=(0x1301, 0x1302),
    sni="a.example",
    alpn=(),
    session_ticket=True,
    psk_modes=True,
    psk_offered=False,
    psk_identity_len=None,
    early_data=False,
    truncated=False,
)
SERVER = ServerHello(
    version="TLSv1.3",
    version_number=0x0304,
    cipher="TLS_AES_128_GCM_SHA256",
    cipher_number=0x1301,
    session_id=b"",
    psk_selected=False,
    alpn=None,
    hello_retry=False,
    truncated=False,
)
RESUMING = dataclasses.replace(CLIENT, psk_offered=True, psk_identity_len=192)
RESUMED = dataclasses.replace(SERVER, psk_selected=True)


def tx(ms: float, length: int, kind: int = APP) -> tuple[int, int, int, bool, bool]:
    return int(ms * 1000), length, kind, False, True


def rx(ms: float, length: int, kind: int = APP) -> tuple[int, int, int, bool, bool]:
    return int(ms * 1000), length, kind, True, True


# ClientHello at 20 ms, a round trip of 20 ms, Finished at 41 ms.
START = [tx(20, 512, HS), rx(40, 122, HS), rx(40, 2300), tx(41, 53)]


def judge(log: list, **given: object) -> Wire:
    arguments: dict = {
        "client": CLIENT,
        "server": SERVER,
        "log_full": False,
        "gap_rx": False,
        "gap_tx": False,
        "alert_tx": None,
        "alert_rx": None,
    }
    return analyze(log, **{**arguments, **given})


H2 = dataclasses.replace(CLIENT, alpn=("h2", "http/1.1"))
