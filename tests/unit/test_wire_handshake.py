"""Stages of TLS connections that real programs made, and of some that none here makes.

tests/data/tls holds the record logs (how they were made: tests/record_tls). Each entry carries
what tshark found in the record after decrypting it, which is the witness for ours.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from monitor.wire.handshake import ENCRYPTED_ALERT, Wire, analyze
from monitor.wire.hello import parse_client_hello, parse_server_hello
from tests.unit.tls_log import ALERT, CCS, HS, RESUMED, RESUMING, SERVER, START, judge, rx, tx

DATA = Path(__file__).resolve().parents[1] / "data" / "tls"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))


def load(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


def clear_alert(capture: dict, rx: bool) -> int | None:
    for _, length, kind, received, _, what in capture["log"]:
        if kind == ALERT and received is rx:
            return int(what.removeprefix("alert")) if length == 2 else ENCRYPTED_ALERT
    return None


def replay(capture: dict, *, hellos: bool = True) -> Wire:
    return analyze(
        [tuple(entry[:5]) for entry in capture["log"]],
        client=parse_client_hello(bytes.fromhex(capture["client_hello"])) if hellos else None,
        server=parse_server_hello(bytes.fromhex(capture["server_hello"])) if hellos else None,
        log_full=capture["log_full"],
        gap_rx=False,
        gap_tx=False,
        alert_tx=clear_alert(capture, False),
        alert_rx=clear_alert(capture, True),
    )


# ---- the witness ----------------------------------------------------------------------------


def times(capture: dict, rx: bool, what: str) -> list[int]:
    return [e[0] for e in capture["log"] if e[3] is rx and what in e[5].split("+")]


def witnessed_done(capture: dict) -> int | None:
    tx, rx = times(capture, False, "h20"), times(capture, True, "h20")
    if not tx or not rx:
        return None
    return tx[-1] if capture["truth"]["version"] == "TLSv1.3" else max(tx[-1], rx[-1])


def witnessed_turn(capture: dict) -> tuple[int | None, int | None]:
    truth = capture["truth"]
    requests = times(capture, False, "app")
    if not requests:
        return None, None
    if truth.get("early") is False:
        requests = requests[1:]  # the early data that the server did not take
    request = requests[truth.get("request", 0)]
    least = truth.get("response_ms", 0) * 1000
    answers = [at for at in times(capture, True, "app") if at >= request + least]
    return request, answers[0] if answers else None


def test_captures_are_there():
    assert len(NAMES) >= 55


@pytest.mark.parametrize("name", NAMES)
def test_handshake_ends_where_the_finished_is(name: str):
    capture = load(name)
    wire = replay(capture)
    truth = capture["truth"]
    assert wire.hello_us == capture["log"][0][0]
    assert wire.handshake_done_us == witnessed_done(capture)
    for key in ("version", "resumed"):
        if key in truth:
            assert getattr(wire, key) == truth[key]
    assert wire.early_data == truth.get("early")
    assert wire.result == truth.get("result", wire.result)
    assert wire.alert == truth.get("alert", wire.alert)
    if wire.handshake_done_us is not None and "result" not in truth:
        assert wire.result == "ok"


@pytest.mark.parametrize("name", NAMES)
def test_first_request_and_its_answer(name: str):
    capture = load(name)
    wire = replay(capture)
    if wire.result != "ok":
        assert wire.request_us is None
        assert wire.response_us is None
        return
    truth = capture["truth"]
    assert (wire.request_us, wire.response_us) == witnessed_turn(capture)
    assert wire.h2_guess is truth.get("h2", False)
    if wire.version == "TLSv1.3":
        assert wire.tickets == len(times(capture, True, "h4"))
        assert wire.tickets == truth.get("tickets", wire.tickets)
    else:
        assert wire.tickets is None


@pytest.mark.parametrize("name", [n for n in NAMES if "turns_ms" in load(n)["truth"]])
def test_every_turn_is_summed(name: str):
    capture = load(name)
    wire = replay(capture)
    waits = [1000 * ms for ms in capture["truth"]["turns_ms"]]
    assert wire.turn_count == len(waits)
    assert sum(waits) <= wire.turn_sum_us <= sum(waits) + 3000 * len(waits)
    assert max(waits) <= wire.turn_max_us <= max(waits) + 3000
    assert wire.open_request_us is None


@pytest.mark.parametrize("name", [n for n in NAMES if "count" in load(n)["truth"]])
def test_body_or_download_is_no_further_turn(name: str):
    capture = load(name)
    assert replay(capture).turn_count == capture["truth"]["count"]


# Lengths alone do not tell CCM_8's shorter Finished, nor what is a ticket and what SETTINGS.
@pytest.mark.parametrize("name", [n for n in NAMES if "ccm8" not in n])
def test_lost_hellos_cost_no_stage(name: str):
    capture = load(name)
    wire = replay(capture, hellos=False)
    assert wire.handshake_done_us == witnessed_done(capture)
    if wire.result == "ok" and "h2" not in name:
        assert (wire.request_us, wire.response_us) == witnessed_turn(capture)


def test_unanswered_request_stays_open():
    wire = replay(load("tls13_given_up"))
    assert wire.tickets == 2
    assert wire.response_us is None
    assert wire.open_request_us == wire.request_us is not None
    assert wire.turn_count == 0


def test_who_broke_off():
    assert replay(load("rejected_12")).alert_from == "client"
    assert replay(load("rejected_13")).alert_from == "client"
    assert replay(load("rejected_gnutls")).result == "rejected"
    assert replay(load("java_rejects")).alert is None  # encrypted
    assert replay(load("alert_version")).alert_from == "server"
    assert replay(load("tls13_client_cert_missing")).alert_from == "server"
    assert replay(load("closed_after_hello")).waiting_for == "server"
    assert replay(load("closed_after_server_flight")).waiting_for == "client"
    assert replay(load("rejected_node")).waiting_for == "client"


def test_handshake_time_is_the_servers_delay():
    wire = replay(load("tls13_slow_handshake"))
    assert 150_000 <= wire.handshake_done_us - wire.hello_us <= 160_000


# ---- stacks and mishaps that are not on this machine ----------------------------------------


def test_full_records_are_never_tickets():
    wire = judge([*START, tx(41.2, 120), rx(61, 16401), rx(61.1, 16401), rx(99, 500)])
    assert wire.response_us == 61_000


def test_server_that_speaks_first_has_its_turns_counted_from_the_client():
    wire = judge([*START, rx(61, 250), rx(61, 250), rx(62, 80), tx(70, 40), rx(91, 60)])
    assert (wire.request_us, wire.response_us, wire.turn_count) == (70_000, 91_000, 1)


def test_certificate_and_finished_in_one_record():
    wire = judge([*START[:3], tx(41, 1700), tx(41.2, 120), rx(61, 999), rx(61, 999), rx(99, 300)])
    assert wire.handshake_done_us == 41_000
    assert (wire.request_us, wire.response_us) == (41_200, 99_000)


def test_long_certificate_fills_a_record_before_the_finished():
    wire = judge([*START[:3], tx(41, 16401), tx(42, 900), tx(43, 120), rx(99, 300)])
    assert wire.handshake_done_us == 42_000
    assert wire.request_us == 43_000


def test_early_data_still_on_its_way_when_the_server_answers():
    log = [
        tx(20, 512, HS),
        tx(20, 300),
        tx(30, 300),
        rx(40, 128, HS),
        rx(40, 40),
        rx(40, 53),
        tx(40.5, 300),
        tx(41, 21),
        tx(41, 53),
        rx(61, 400),
    ]
    wire = judge(log, client=RESUMING, server=RESUMED)
    assert wire.early_data is True
    assert wire.handshake_done_us == 41_000
    assert (wire.request_us, wire.response_us) == (20_000, 61_000)


def test_encrypted_alert_in_place_of_the_servers_finished():
    wire = judge([tx(20, 512, HS), rx(40, 122, HS), rx(40, 30), rx(40, 19)])
    assert (wire.result, wire.alert, wire.alert_from) == ("alert", None, "server")


def test_short_tags_shorten_the_alert():
    """TLS_AES_128_CCM_8_SHA256."""
    server = dataclasses.replace(SERVER, cipher_number=0x1305)
    wire = judge([*START[:3], tx(41, 11)], server=server)
    assert (wire.result, wire.alert_from) == ("rejected", "client")
    wire = judge([*START[:3], tx(41, 45), tx(42, 99), rx(62, 11)], server=server)
    assert (wire.result, wire.response_us) == ("ok", None)


def test_lone_ccs_of_the_client_leaves_it_its_turn():
    assert judge([*START[:3], tx(41, 1, CCS)]).waiting_for == "client"


def test_answered_close_is_no_rejection():
    """After an empty client certificate that the server is content with."""
    wire = judge([*START[:3], tx(41, 25), tx(41, 53), tx(42, 120), rx(62, 300), rx(63, 19)])
    assert wire.result == "ok"
    assert wire.response_us == 62_000


def test_close_without_an_answer_is_no_answer():
    wire = judge([*START, tx(41.2, 120), rx(61, 250), rx(61, 250), rx(500, 19)])
    assert wire.result == "ok"
    assert wire.response_us is None


def test_unrecognized_name_is_a_warning_when_the_client_objects_later():
    log = [tx(0, 300, HS), rx(20, 2, ALERT), rx(20, 90, HS), tx(21, 2, ALERT)]
    server = dataclasses.replace(SERVER, version="TLSv1.2", version_number=0x0303)
    wire = judge(log, server=server, alert_rx=112, alert_tx=48)
    assert (wire.result, wire.alert) == ("rejected", "unknown_ca")
    wire = judge(log[:2], server=None, alert_rx=112)
    assert (wire.result, wire.alert) == ("alert", "unrecognized_name")


def test_warning_before_a_handshake_that_succeeds_is_no_failure():
    capture = load("tls12_full")
    log = [tuple(e[:5]) for e in capture["log"]]
    log.insert(1, rx(3, 2, ALERT))
    assert judge(log, server=None, alert_rx=112).result == "ok"


def test_closing_alert_in_mid_handshake_is_no_verdict():
    wire = judge([tx(0, 300, HS), rx(20, 2, ALERT)], server=None, alert_rx=0)
    assert wire.result == "incomplete"


def test_log_that_ends_too_soon_gives_no_verdict():
    assert judge(START[:3]).result == "incomplete"
    assert judge(START[:3], log_full=True).result is None
    assert judge(START[:3], gap_tx=True).result is None
    assert judge([*START[:3], (0, 0, 0, False, False)]).result is None


def test_missing_finished_is_not_made_up():
    wire = judge([*START[:3], tx(41.2, 120), rx(261, 900)], gap_tx=True)
    assert wire.result == "ok"
    assert wire.handshake_done_us is None
    assert wire.request_us is None


def test_false_start_ends_with_the_servers_finished():
    log = [
        tx(0, 200, HS),
        rx(20, 3000, HS),
        tx(21, 70, HS),
        tx(21, 1, CCS),
        tx(21, 40, HS),
        tx(22, 120),
        rx(41, 1, CCS),
        rx(41, 40, HS),
        rx(42, 300),
    ]
    wire = judge(log, server=None)
    assert wire.version is None
    assert wire.handshake_done_us == 41_000
    assert (wire.request_us, wire.response_us) == (22_000, 42_000)


def test_nothing_to_judge():
    assert judge([]) == Wire()
    assert judge([rx(1, 100), tx(2, 100)]) == Wire()
