"""Requests and answers among the encrypted records that follow a handshake."""

import dataclasses

import pytest

from monitor.wire.records import LATE_US
from tests.unit.tls_log import CCS, CLIENT, H2, HS, RESUMED, RESUMING, SERVER, START, judge, rx, tx


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


@pytest.mark.parametrize("tickets", [(250, 250), (250, 266)])
def test_a_ticket_that_waits_for_a_delayed_acknowledgement_is_no_greeting(tickets):
    """A server without TCP_NODELAY, a client that says nothing yet."""
    first, second = tickets
    log = [*START, rx(61, first), rx(261, second), tx(5000, 200), rx(5100, 500)]
    wire = judge(log)
    assert (wire.tickets, wire.greeting_us) == (2, None)
    assert (wire.request_us, wire.response_us, wire.turn_count) == (5_000_000, 5_100_000, 1)
    # the first in time, the second not: a server that speaks
    wire = judge([*START, rx(61, first), rx(461, second), tx(5000, 200), rx(5100, 500)])
    assert wire.greeting_us is not None


CHUNKS = [tx(41.2, 200), tx(41.3, 5100)]


@pytest.mark.parametrize("sent", [CHUNKS, [tx(41.2, 200), tx(41.3, 16401)], [tx(41.2, 900)]])
@pytest.mark.parametrize("more", [[tx(61.6, 16401)], [tx(61.6, 16401), tx(61.7, 40)]])
@pytest.mark.parametrize("tickets", [1, 2])
def test_a_ticket_amid_an_upload_is_no_answer(sent, more, tickets):
    log = [*START, *sent]
    for _ in range(tickets):
        log += [rx(61.5, 250), *more]
    wire = judge([*log, rx(2000, 150)])
    assert (wire.request_us, wire.response_us) == (41_200, 2_000_000)
    assert (wire.turn_count, wire.tickets) == (1, tickets)


def test_a_ticket_between_two_chunks_of_a_body_is_no_answer():
    wire = judge([*START, *CHUNKS, rx(61.5, 140), tx(70, 3300), tx(80, 700), rx(2000, 150)])
    assert (wire.response_us, wire.turn_count, wire.tickets) == (2_000_000, 1, 1)
    # a record that comes too late for a ticket is an answer, whatever follows
    wire = judge([*START, *CHUNKS, rx(161.5, 140), tx(170, 16401), rx(2000, 150)])
    assert (wire.response_us, wire.turn_count, wire.tickets) == (161_500, 2, 0)
    # as is one with the ticket's length that comes after the time for tickets
    wire = judge([*START, *CHUNKS, rx(61.5, 140), tx(70, 16401), rx(2000, 140)])
    assert (wire.response_us, wire.turn_count, wire.tickets) == (2_000_000, 1, 1)


@pytest.mark.parametrize(
    "tickets",
    [
        [rx(61.5, 250), rx(61.5, 250), tx(70, 2200)],
        [rx(61.5, 250), tx(70, 2200), rx(90.5, 250)],  # what came in between acknowledged the first
        [rx(61.5, 250), tx(150, 2200), rx(170.5, 250), tx(175, 60)],
        [rx(61.5, 250), rx(121.5, 250), tx(150, 2200)],  # a delayed acknowledgement
    ],
)
def test_two_tickets_after_a_head_alone(tickets):
    wire = judge([*START, tx(41.2, 200), *tickets, tx(180, 4000), rx(2000, 150)])
    assert (wire.request_us, wire.response_us) == (41_200, 2_000_000)
    assert (wire.turn_count, wire.tickets) == (1, 2)


@pytest.mark.parametrize("asked", [[tx(41.2, 1500)], [tx(41.2, 300), tx(41.3, 900)]])
def test_large_requests_of_one_record_each_are_requests(asked):
    """With cookies: a server without tickets answers each."""
    wire = judge([*START, *asked, rx(61.5, 300), tx(70, 1500), rx(95, 340)])
    assert (wire.response_us, wire.turn_count, wire.tickets) == (61_500, 2, 0)
    wire = judge([*START, *asked, rx(61.5, 300), tx(70, 1500), rx(195, 300)])
    assert (wire.response_us, wire.turn_count, wire.tickets) == (61_500, 2, 0)


# ---- times that no longer fit into the log (after 71 minutes) ------------------------------------

LATE = LATE_US / 1000
TICKETS = [rx(61, 250), rx(61, 250)]
FIRST = [tx(70, 120), rx(91, 400)]


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("before", [[], FIRST])
def test_turns_of_unknown_times_do_not_count_as_none(before, turns):
    wire = judge([*START, *TICKETS, *before, *[tx(LATE, 120), rx(LATE, 400)] * turns])
    assert not wire.turns_timed
    assert wire.spoke
    assert wire.turn_count == turns + len(before) // 2
    assert (wire.request_us, wire.response_us) == ((70_000, 91_000) if before else (None, None))


def test_an_answer_of_unknown_time():
    wire = judge([*START, *TICKETS, tx(70, 120), rx(LATE, 400)])
    assert (wire.request_us, wire.response_us, wire.turns_timed) == (70_000, None, False)


def test_what_is_late_and_no_turn_leaves_the_turns_known():
    for more in ([], [tx(LATE, 120)], [tx(LATE, 19)], [rx(LATE, 19)]):  # asked only, goodbyes
        wire = judge([*START, *TICKETS, *FIRST, *more])
        assert (wire.turns_timed, wire.turn_count, wire.turn_sum_us) == (True, 1, 21_000)


def test_late_streams_of_http2_are_not_left_out():
    begun = [*START, tx(41.1, 86), tx(41.1, 70), rx(61, 35), tx(61.3, 26), rx(99, 900)]
    assert judge([*begun, rx(LATE, 34), tx(LATE, 34)], client=H2).turns_timed  # a ping
    wire = judge([*begun, tx(LATE, 30), rx(LATE, 62)], client=H2)
    assert wire.h2_guess
    assert not wire.turns_timed


def test_a_handshake_of_unknown_times_took_no_known_time():
    log = [(LATE_US, *rest) for _, *rest in [*START, *FIRST]]
    wire = judge(log)
    assert (wire.result, wire.hello_us, wire.handshake_done_us) == ("ok", None, None)
    wire = judge([*log[:4], rx(LATE, 80)], client=NO_PSK)
    assert wire.greeting_us is None
