"""HTTP/2's answer among the records of a TLS connection.

tests/data/h2_records.json holds what was noted of requests by ten clients to nine servers, as
tests/lab/http2.py makes them, and when the answer came, which the one behind the server knew.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.unit.tls_log import CLIENT, H2, HS, SERVER, judge, rx, tx

SEEN = json.loads((Path(__file__).parents[1] / "data" / "h2_records.json").read_text())

# A ServerHello and the rest of a flight as OpenSSL sends it; Finished at 21.1 ms.
START = [tx(0, 512, HS), rx(20, 122, HS), rx(20, 27), rx(20, 820), rx(20, 281), rx(20, 53)]
START += [tx(21.1, 53)]
TICKETS = [rx(41, 250), rx(41, 250)]
SETTINGS = rx(41.1, 57)  # nginx: three settings and a WINDOW_UPDATE
FIRST_TURN = (21_200, 171_000)


def replay(seen):
    client = dataclasses.replace(H2, alpn=tuple(seen["alpn"]), psk_modes=seen["psk_modes"])
    server = dataclasses.replace(
        SERVER,
        version=seen["version"],
        version_number=0x304 if seen["version"] == "TLSv1.3" else 0x303,
        cipher=seen["cipher"],
        cipher_number=seen["number"],
        alpn=seen["chosen"],
    )
    log = [(at, length, kind, bool(received), True) for at, length, kind, received in seen["log"]]
    return judge(log, client=client, server=server, log_full=seen["full"], path_us=seen["path_us"])


@pytest.mark.parametrize("seen", SEEN, ids=lambda seen: seen["about"])
def test_what_is_told_of_a_real_request_is_right(seen):
    wire = replay(seen)
    assert wire.response_us in (None, seen["answer_us"])
    if wire.response_us is not None:
        assert wire.h2_guess
        # the client said it before the server's answer, and after its Finished
        assert wire.handshake_done_us is None or wire.request_us < wire.response_us


def test_most_of_them_are_told():
    assert len(SEEN) >= 100
    told = sum(replay(seen).response_us is not None for seen in SEEN)
    assert told >= 0.95 * len(SEEN)


def turn(log, **given):
    wire = judge([*START, *log], **{"client": H2, "path_us": 20_000, **given})
    return wire, (wire.request_us, wire.response_us)


# Record lengths with their 17 bytes of TLS. Each asks at 21.2 ms and is answered at 171 ms.
ASKED = {
    "curl, preface and request apart": [tx(21.1, 81), tx(21.2, 64)],
    "libcurl 8, all in one": [tx(21.2, 223)],
    "Go, a small body": [tx(21.1, 81), tx(21.2, 83), tx(21.3, 36)],
    "hyper, three records": [tx(21.1, 41), tx(21.1, 63), tx(21.2, 75)],
}  # fmt: skip
OPENED = {
    "nginx": [SETTINGS, tx(41.3, 26), rx(61, 26)],
    "nginx, at once": [rx(41.1, 66), tx(41.3, 26)],
    "haproxy, four frames": [rx(41.1, 73), tx(41.3, 26)],
    "Apache": [rx(41.1, 45), tx(41.3, 26), rx(41.4, 26)],
    "Go": [rx(41.1, 50), rx(41.2, 39), tx(41.3, 26), rx(41.9, 30)],
    "Node.js": [rx(41.1, 26), tx(41.3, 26), rx(41.4, 26)],
    "lighttpd, for two SETTINGS": [rx(41.1, 113), tx(41.3, 26)],
}


@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("tickets", [[], TICKETS, TICKETS[:1]])
def test_settings_and_window_updates_are_no_answer(asked, opened, tickets):
    wire, told = turn([*asked, *tickets, *opened, rx(171, 89)])
    assert wire.h2_guess
    assert told == FIRST_TURN
    assert wire.turn_count == 1


def test_settings_that_come_before_the_request():
    log = [*TICKETS, SETTINGS, tx(60, 223), rx(80.2, 26), tx(80.3, 52), rx(230, 89)]
    assert turn(log)[1] == (60_000, 230_000)


def test_an_upload_is_answered_by_window_updates_all_along():
    log = [tx(21.1, 81), tx(21.2, 85), tx(21.3, 16401), *TICKETS, SETTINGS, tx(41.2, 26)]
    for ms in range(60, 160, 20):
        log += [rx(ms, 43), rx(ms + 1, 30), tx(ms + 2, 16401)]
    assert turn([*log, rx(171, 70), rx(171.1, 28)])[1] == FIRST_TURN


@pytest.mark.parametrize("settings", [26, 66])
def test_settings_and_an_answer_in_one_record(settings):
    """Of a server that answers at once, to a client that leaves with it."""
    body = 17 + 9 + 9 + 45  # SETTINGS, acknowledgement, HEADERS with DATA
    log = [tx(21.2, 190), *TICKETS, rx(41.2, body), tx(41.9, 34), tx(42, 19)]
    assert turn(log)[1] == (21_200, 41_200)
    # alone, SETTINGS and an acknowledgement look the same
    assert turn([tx(21.2, 190), *TICKETS, rx(41.2, settings), tx(41.4, 26)])[1][1] is None


@pytest.mark.parametrize("tickets", [[], TICKETS, TICKETS[:1]])
def test_settings_as_nobody_has_them_are_not_taken_for_the_answer(tickets):
    log = [tx(21.1, 81), tx(21.2, 64), *tickets, rx(41.1, 17 + 79), tx(41.3, 26), rx(171, 89)]
    assert turn(log)[1][1] in (None, 171_000)


def test_where_two_readings_remain_none_is_told():
    # WINDOW_UPDATE, for which nothing called, or fields of four bytes: and then more
    log = [tx(21.1, 81), tx(21.2, 64), *TICKETS, SETTINGS, tx(41.3, 26)]
    wire, told = turn([*log, rx(171, 30), rx(300, 89)])
    assert told[1] is None and wire.unsettled
    assert (wire.turn_count, wire.open_request_us) == (0, None)
    assert turn([*log, rx(171, 30), rx(171.2, 89)])[1] == (21_200, 171_200)
    # no cipher of HTTP/2 has no lengths; nor has one that is not known
    server = dataclasses.replace(
        SERVER, version="TLSv1.2", version_number=0x303, alpn="h2",
        cipher="TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    )  # fmt: skip
    shaken = [tx(0, 200, HS), rx(20, 3000, HS), tx(21, 70, HS), tx(21, 1, 20), tx(21, 40, HS)]
    shaken += [rx(41, 1, 20), rx(41, 40, HS)]
    wire = judge([*shaken, tx(42, 90), rx(62, 80), rx(171, 90)], client=H2, server=server)
    assert (wire.response_us, wire.unsettled) == (None, True)


def test_no_answer_comes_sooner_than_a_round_trip():
    log = [tx(21.1, 81), *TICKETS, SETTINGS, tx(41.3, 26), tx(60, 64), rx(60.1, 150)]
    assert turn([*log, rx(171, 89)])[1] == (60_000, 171_000)


# ---- HTTP/1.1 where HTTP/2 was offered, too -----------------------------------------------------


@pytest.mark.parametrize("request_bytes", range(55, 90))
@pytest.mark.parametrize("answer_bytes", [27, 40, 56, 66, 130])
@pytest.mark.parametrize("tickets", [[], TICKETS])
def test_http1_of_any_length_is_not_taken_for_http2(request_bytes, answer_bytes, tickets):
    log = [tx(21.2, 17 + request_bytes), *tickets, rx(171, 17 + answer_bytes)]
    for more in ([], [tx(171.2, 19)]):
        wire, told = turn([*log, *more])
        assert (wire.h2_guess, told, wire.turn_count) == (False, FIRST_TURN, 1)
    again = [tx(180, 17 + request_bytes), rx(201, 17 + answer_bytes), tx(210, 19)]
    wire, told = turn([*log, *again])
    assert (wire.h2_guess, told, wire.turn_count) == (False, FIRST_TURN, 2)


def test_http1_whose_body_comes_later_than_its_head():
    log = [tx(21.2, 87), *TICKETS, rx(171, 57), rx(300, 900), tx(301, 19)]
    wire, told = turn(log)
    assert (wire.h2_guess, told) == (False, FIRST_TURN)  # no SETTINGS go unacknowledged so long


def test_100_continue_lets_a_short_body_come():
    """As far as record lengths tell: inside TLS an interim answer looks like any other."""
    log = [tx(21.2, 200), *TICKETS, rx(61, 17 + 25), tx(61.1, 17 + 9), rx(171, 200)]
    assert turn(log)[0].h2_guess is False


def test_what_a_client_offers_and_a_server_chooses_is_believed():
    only = dataclasses.replace(CLIENT, alpn=("h2",))
    log = [tx(21.2, 87), *TICKETS, rx(171, 44)]
    assert turn(log, client=only)[0].h2_guess
    assert not turn(log, client=CLIENT)[0].h2_guess
