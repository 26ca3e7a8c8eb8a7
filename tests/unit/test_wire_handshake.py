"""Stages of TLS connections that real programs made, and of some that none here makes.

tests/data/tls holds the record logs (how they were made: tests/record_tls). Each entry carries
what tshark found in the record after decrypting it, which is the witness for ours.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from monitor.wire.handshake import ENCRYPTED_ALERT, Wire, analyze
from monitor.wire.hello import ClientHello, ServerHello, parse_client_hello, parse_server_hello

DATA = Path(__file__).resolve().parents[1] / "data" / "tls"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))

CCS, ALERT, HS, APP = 20, 21, 22, 23


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


def test_single_ticket_then_a_slow_answer():
    wire = judge([*START, tx(41.2, 120), rx(61.5, 170), rx(261.5, 900)])
    assert wire.tickets == 1
    assert wire.response_us == 261_500


def test_head_and_late_body_from_a_server_without_tickets():
    wire = judge([*START, tx(41.2, 120), rx(111.5, 170), rx(261.5, 900)])
    assert wire.tickets == 0
    assert wire.response_us == 111_500


def test_client_that_cannot_resume_is_sent_no_single_ticket():
    client = dataclasses.replace(CLIENT, psk_modes=False)
    wire = judge([*START, tx(41.2, 120), rx(61.5, 170), rx(261.5, 900)], client=client)
    assert wire.response_us == 61_500


def test_lone_flight_before_the_next_request_was_the_answer():
    wire = judge([*START, tx(41.2, 120), rx(61.5, 170), tx(70, 120), rx(95, 170)])
    assert wire.response_us == 61_500
    assert wire.turn_count == 2
    assert wire.turn_sum_us == 20_300 + 25_000


def test_lone_ticket_of_the_known_size_is_none():
    """A resumed session's new ticket, between a request's head and its body."""
    log = [*START, tx(41.2, 120), rx(61.5, 234), tx(70, 5000), rx(95, 170)]
    wire = judge(log, client=RESUMING, server=RESUMED)
    assert wire.resumed is True
    assert wire.tickets == 1
    assert (wire.request_us, wire.response_us) == (41_200, 95_000)
    assert wire.turn_count == 1


def test_two_tickets_between_head_and_body():
    wire = judge([*START, tx(41.2, 120), rx(61, 250), rx(61, 250), tx(62, 999), rx(90, 170)])
    assert wire.tickets == 2
    assert (wire.request_us, wire.response_us, wire.turn_count) == (41_200, 90_000, 1)


def test_request_overtakes_the_second_ticket():
    wire = judge([*START, rx(61, 250), tx(61.1, 120), rx(61.2, 250), rx(200, 300)])
    assert wire.tickets == 2
    assert wire.response_us == 200_000


def test_tickets_of_openssl_may_differ_by_a_block():
    wire = judge([*START, tx(41.2, 120), rx(61, 250), rx(61, 266), rx(200, 300)])
    assert (wire.tickets, wire.response_us) == (2, 200_000)
    wire = judge([*START, rx(61, 266), tx(61.1, 120), rx(61.2, 250), rx(200, 300)])
    assert (wire.tickets, wire.response_us) == (2, 200_000)
    # nothing after them: the second may be the answer
    wire = judge([*START, tx(41.2, 120), rx(61, 250), rx(61, 266), tx(90, 120), rx(130, 99)])
    assert wire.response_us == 61_000


def test_four_tickets_of_rustls():
    wire = judge([*START, tx(41.2, 120), *[rx(61, 103)] * 4, rx(200, 300)])
    assert wire.tickets == 4
    assert wire.response_us == 200_000


def test_tickets_in_front_of_a_late_answer_come_with_it():
    """BoringSSL keeps its tickets until the server first writes."""
    wire = judge([*START, tx(41.2, 120), rx(261, 500), rx(261, 900)])
    assert wire.response_us == 261_000


def test_run_of_equal_records_is_data():
    wire = judge([*START, tx(41.2, 120), *[rx(61 + i, 1208) for i in range(9)]])
    assert wire.tickets == 0
    assert wire.response_us == 61_000


NO_PSK = dataclasses.replace(CLIENT, psk_modes=False)


@pytest.mark.parametrize("client", [CLIENT, NO_PSK, None])
@pytest.mark.parametrize("more", [[], [rx(63, 700)], [rx(63, 1232)], [rx(63, 1232), rx(64, 9)]])
def test_an_answer_in_small_records_of_one_length_is_an_answer(client, more):
    """HAProxy and Cloudflare begin so."""
    wire = judge([*START, tx(41.2, 120), rx(61, 1232), rx(61.1, 1232), *more], client=client)
    assert (wire.request_us, wire.response_us) == (41_200, 61_000)
    assert (wire.turn_count, wire.tickets) == (1, 0)


def test_the_kernel_side_notes_only_the_first_of_such_records():
    flight = [rx(40, 27), rx(40, 2000), rx(40, 281), rx(40, 53)]  # in records as OpenSSL has them
    wire = judge([*START[:2], *flight, START[3], tx(41.2, 120), rx(61, 1232), rx(63, 700)])
    assert (wire.response_us, wire.turn_count, wire.tickets) == (61_000, 1, 0)
    # one record may be Java's, whose ticket is as large
    assert judge([*START, tx(41.2, 120), rx(61, 1887), rx(261, 700)]).response_us == 261_000


@pytest.mark.parametrize("more", [[], [rx(261, 700)]])
def test_openssl_sends_tickets_to_those_who_cannot_use_any(more):
    """To Go's and Erlang's clients: tests/data/events."""
    wire = judge([*START, tx(41.2, 120), rx(61, 266), rx(61.1, 266), *more], client=NO_PSK)
    assert (wire.tickets, wire.response_us) == (2, 261_000 if more else None)


def test_two_large_tickets_hold_the_clients_certificate():
    log = [*START[:3], tx(41, 1602), tx(41, 281), tx(41, 53), tx(41.2, 120)]
    wire = judge([*log, rx(61, 1050), rx(61, 1050), rx(261, 700)])
    assert (wire.tickets, wire.response_us) == (2, 261_000)
    # or did so when the client first came: as long as the ticket it offers
    client = dataclasses.replace(RESUMING, psk_identity_len=1008)
    log = [*START, tx(41.2, 120), rx(61, 1050), rx(61, 1050), rx(261, 700)]
    assert judge(log, client=client, server=RESUMED).response_us == 261_000


def test_large_records_that_come_unasked_answer_nothing():
    wire = judge([*START, rx(61, 1232), rx(61.1, 1232), tx(70, 120), rx(91, 700)])
    assert (wire.request_us, wire.response_us) == (70_000, 91_000)


@pytest.mark.parametrize("tickets", [[250, 250], [250, 266], [250], [1887]])
def test_a_server_that_speaks_first_greets_inside_tls(tickets):
    log = [*START, *(rx(61, length) for length in tickets), rx(161, 80), rx(162, 90)]
    wire = judge([*log, tx(170, 40), rx(191, 60)])
    assert (wire.greeting_us, wire.request_us, wire.response_us) == (161_000, 170_000, 191_000)
    assert judge(log).greeting_us == 161_000


def test_a_server_without_tickets_greets():
    wire = judge([*START, rx(161, 80), tx(170, 40), rx(191, 60)])
    assert (wire.greeting_us, wire.tickets) == (161_000, 0)
    wire = judge([*START, rx(61, 80), tx(70, 40), rx(91, 60)], client=NO_PSK)
    assert (wire.greeting_us, wire.response_us) == (61_000, 91_000)
    server = dataclasses.replace(SERVER, version="TLSv1.2", version_number=0x0303)
    log = [tx(0, 200, HS), rx(20, 3000, HS), tx(21, 70, HS), tx(21, 1, CCS), tx(21, 40, HS)]
    log += [rx(41, 1, CCS), rx(41, 40, HS), rx(52, 90), tx(60, 50), rx(81, 70)]
    wire = judge(log, server=server)
    assert (wire.greeting_us, wire.request_us, wire.response_us) == (52_000, 60_000, 81_000)


@pytest.mark.parametrize(
    "unasked",
    [
        [],
        [rx(61, 250), rx(61, 250)],
        [rx(61, 250), rx(61, 266)],
        [rx(61, 250), rx(61, 250), rx(61, 50), rx(61, 30)],  # HTTP/2: SETTINGS, WINDOW_UPDATE
    ],
)
def test_tickets_and_settings_are_no_greeting(unasked):
    assert judge([*START, *unasked, tx(99, 86), tx(99.1, 60)], client=H2).greeting_us is None
    assert judge([*START, *unasked], client=H2).greeting_us is None


@pytest.mark.parametrize("between", [[], [rx(61, 250), rx(61, 250)], [rx(61, 22)]])
def test_new_keys_before_the_first_request_are_no_request(between):
    wire = judge([*START, tx(41.1, 22), *between, tx(80, 120), rx(101, 900)])
    assert (wire.request_us, wire.response_us, wire.turn_count) == (80_000, 101_000, 1)


def test_a_request_as_short_as_new_keys_is_one_all_the_same():
    log = [*START, rx(61, 250), rx(61, 250), tx(70, 22), rx(91, 40), tx(95, 22), rx(116, 40)]
    wire = judge(log)
    assert (wire.request_us, wire.response_us, wire.turn_count) == (70_000, 91_000, 2)


@pytest.mark.parametrize("tickets", [[], [rx(121, 1050), rx(121, 1050)]])
@pytest.mark.parametrize("verify", [281, 96])
def test_a_certificate_that_is_asked_for_after_the_handshake(tickets, verify):
    client = dataclasses.replace(CLIENT, post_handshake_auth=True)
    log = [*START, tx(41.2, 120), rx(61, 250), rx(61, 250), rx(62, 180)]
    log += [tx(100, 1602), tx(100, verify), tx(100, 53)]
    wire = judge([*log, *tickets, rx(161, 900), rx(161.1, 901)], client=client)
    assert (wire.request_us, wire.response_us, wire.turn_count) == (41_200, 161_000, 1)
    assert judge(log, client=client).open_request_us == 41_200
    assert judge([*log, rx(161, 900), rx(161, 900)], client=client).response_us == 161_000
    # a client that offers none is asked for none
    assert judge([*log, rx(161, 900)]).turn_count == 2


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


H2 = dataclasses.replace(CLIENT, alpn=("h2", "http/1.1"))


def test_grpc_waits_for_settings_before_its_request():
    log = [*START, tx(41.1, 86), rx(61, 170), rx(61.1, 50), tx(61.3, 26), tx(61.4, 200), rx(99, 90)]
    wire = judge(log, client=H2)
    assert wire.h2_guess
    assert (wire.request_us, wire.response_us) == (61_400, 99_000)


def test_preface_and_settings_in_records_of_their_own():
    log = [*START, tx(41.1, 41), tx(41.2, 63), rx(61, 50), tx(61.3, 26), tx(81, 200), rx(99, 90)]
    wire = judge(log, client=H2)
    assert wire.h2_guess
    assert (wire.request_us, wire.response_us) == (81_000, 99_000)


def test_idle_http2_connection_has_no_answer():
    log = [*START, tx(41.1, 86), rx(61, 250), rx(61, 250), rx(61.1, 50), tx(61.3, 26)]
    wire = judge(log, client=H2)
    assert wire.response_us is None
    assert wire.turn_count == 0


def test_window_updates_and_pings_are_no_turns():
    log = [*START, tx(41.1, 86), tx(41.1, 70), rx(61, 35), tx(61.3, 26), rx(99, 900)]
    log += [tx(100, 30), rx(101, 16401), tx(102, 34), rx(122, 34), tx(130, 60), rx(160, 90)]
    wire = judge(log, client=H2)
    assert (wire.request_us, wire.response_us) == (41_100, 99_000)
    assert wire.turn_count == 2
    assert wire.turn_max_us == 57_900


def test_padded_settings_of_a_java_server():
    log = [*START, tx(41.1, 86), tx(41.1, 70), rx(61, 1887), rx(61, 60), tx(61.3, 26)]
    log += [rx(61.5, 42), rx(99, 900)]
    wire = judge(log, client=H2)
    assert wire.tickets == 1
    assert wire.response_us == 99_000


def test_small_http1_answer_is_not_taken_for_settings():
    wire = judge([*START, tx(41.1, 120), rx(61, 250), rx(61, 250), rx(99, 44)], client=H2)
    assert wire.h2_guess is False
    assert wire.response_us == 99_000


def test_nothing_to_judge():
    assert judge([]) == Wire()
    assert judge([rx(1, 100), tx(2, 100)]) == Wire()


# ---- HTTP/2's later streams, whose fields are as short as control frames -----------------------

# What followed Finished, as (ms, length, "<" or ">"), of clients that asked a Node.js server (or a
# gRPC one) several times, each answered after 110 (100) ms, at a round trip of 20 ms.
LATER_STREAMS = {
    "h2load": (3, 131 * 3, [
        (48.5, 118, ">"), (70.4, 282, "<"), (70.4, 282, "<"), (70.5, 26, "<"), (70.7, 26, ">"),
        (72, 26, "<"), (184.4, 62, "<"), (187.3, 26, "<"), (187.4, 31, ">"), (318.8, 39, "<"),
        (319, 26, "<"), (319.1, 31, ">"), (450.4, 39, "<"), (450.6, 26, "<"), (450.8, 34, ">"),
        (450.8, 19, ">"), (471.3, 34, "<"),
    ]),
    "curl": (2, 131 * 2, [
        (44.2, 81, ">"), (44.2, 58, ">"), (65, 282, "<"), (65, 282, "<"), (65, 26, "<"),
        (65, 26, "<"), (65.2, 26, ">"), (177.3, 62, "<"), (177.5, 26, "<"), (178, 45, ">"),
        (309.3, 39, "<"), (309.5, 26, "<"), (330.2, 19, "<"),
    ]),
    "node": (3, 131 * 3, [
        (49.1, 76, ">"), (70.1, 282, "<"), (70.1, 282, "<"), (70.1, 35, "<"), (70.5, 26, ">"),
        (180.5, 62, "<"), (180.8, 26, "<"), (185.9, 30, ">"), (317.2, 39, "<"), (317.4, 26, "<"),
        (318.1, 30, ">"), (449.3, 39, "<"), (449.7, 26, "<"), (450.2, 34, ">"), (450.6, 19, ">"),
        (470.5, 34, "<"), (470.8, 19, "<"),
    ]),
    "tls_client": (3, 131 * 3, [
        (47.3, 87, ">"), (47.4, 81, ">"), (67.9, 282, "<"), (67.9, 282, "<"), (67.9, 26, "<"),
        (67.9, 26, "<"), (68.1, 26, ">"), (179.1, 65, "<"), (179.3, 26, "<"), (180.4, 38, ">"),
        (311.7, 39, "<"), (311.8, 26, "<"), (312.9, 38, ">"), (444.5, 39, "<"), (444.6, 26, "<"),
        (485.6, 19, "<"),
    ]),
    "grpc": (3, 122 * 3, [
        (41.9, 99, ">"), (62.1, 413, "<"), (62.1, 63, "<"), (62.2, 26, "<"), (62.3, 26, ">"),
        (62.5, 281, ">"), (82.7, 34, "<"), (82.8, 34, ">"), (187.2, 172, "<"), (187.9, 112, ">"),
        (208.5, 64, "<"), (208.7, 34, ">"), (309.1, 70, "<"), (309.8, 76, ">"), (309.9, 34, ">"),
        (330.3, 47, "<"), (431.1, 70, "<"), (433.3, 34, "<"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("program", LATER_STREAMS)
def test_later_streams_of_http2_are_turns(program):
    count, total_ms, after = LATER_STREAMS[program]
    log = [*START, *((rx if way == "<" else tx)(at, length) for at, length, way in after)]
    wire = judge(log, client=H2)
    assert wire.h2_guess
    assert wire.turn_count == count
    assert abs(wire.turn_sum_us / 1000 - total_ms) < 12, wire
