"""The stages of a TLS connection from its record headers alone.

The kernel notes, for the first 32 TLS records of a connection, when each started, its length,
its content type and its direction. Nothing is decrypted. This module finds in them where the
handshake ended at the client, which record began the request, and which the response.

Up to TLS 1.2 the record types tell the handshake: each side's ChangeCipherSpec is followed by
its Finished; the server's comes last in a full handshake and first in a resumed one.

TLS 1.3 calls everything after ServerHello application data, so lengths must tell:

- A Finished holds one hash, so its record has one length per cipher suite (53 or 69 bytes for
  nearly all). The client's first record of that length after the server's flight ends the
  handshake. Larger ones before it are a client certificate; one that ends EndOfEarlyData
  before it means that early data was taken.
- Some stacks pad (Java: every record by 16 bytes), so each such length has a second form.

What came after is turns.py's to read.

Sources: RFC 8446 sections 4.4.4, 5.2 and appendix D.4; RFC 5246 section 7.3. The lengths of
real stacks' flights are recorded in tests/data/tls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from conmon.ciphers import CIPHER_NAMES
from monitor.wire.alerts import CERTIFICATE_ALERTS, alert_name
from monitor.wire.hello import ClientHello, ServerHello
from monitor.wire.records import JAVA_PADDING, LATE_US, After, Record, Turns
from monitor.wire.turns import TICKET_SLACK_US, find_turns

__all__ = ["ENCRYPTED_ALERT", "Record", "Result", "Side", "Wire", "analyze"]

Result = Literal["ok", "alert", "rejected", "incomplete"]
Side = Literal["client", "server"]

ENCRYPTED_ALERT = 254
"""Stands for the description of an alert that was sent encrypted."""

_CCS = 20
_ALERT = 21
_HANDSHAKE = 22
_DATA = 23

_CLOSE_NOTIFY = 0
_USER_CANCELED = 90
_UNRECOGNIZED_NAME = 112  # a mere warning from servers that then carry on

_FULL_RECORD = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What the record log tells. Times are on the log's own clock, None where not seen.

    ``result`` is ``"ok"`` (the client finished), ``"alert"`` (ended by an alert),
    ``"rejected"`` (ended by the client, for the server's certificate as far as can be told),
    ``"incomplete"`` (stopped with no alert; ``waiting_for`` says whose turn it was), or None
    where the log does not reach far enough. ``alert`` is its name, None if it was encrypted;
    ``alert_from`` the side that sent it.

    ``resumed`` and ``early_data`` (None: none sent; else whether the server took it) as they
    say. ``tickets`` counts TLS 1.3 session tickets, as far as they can be told.

    ``greeting_us`` is the first data of a server that speaks before anything is asked of it.
    ``request_us`` and ``response_us`` are the first request record and the first record of its
    answer. ``turn_*`` sum up every turn inside the log, that first one included;
    ``open_request_us`` is the request that the log ends without an answer to, from which a
    later response counts. ``turns_timed``: no turn ended, or may have ended, so late that the log
    no longer has the time (``turn_count`` has those that did, the sums have not). ``spoke``:
    something was asked or the server said something, tickets too, be it as late.
    ``ticket_limit_us``: by then session tickets have come, where they look like data. ``h2_guess``:
    the lengths look like HTTP/2, and its SETTINGS were not taken for an answer.
    ``unsettled``: there may have been an answer, but not to be told which record it was.
    ``unused``: after the handshake nothing was sent but a closing alert, and nothing received but
    tickets and that.
    """

    hello_us: int | None = None
    handshake_done_us: int | None = None
    version: str | None = None
    result: Result | None = None
    alert: str | None = None
    alert_from: Side | None = None
    waiting_for: Side | None = None
    resumed: bool | None = None
    early_data: bool | None = None
    tickets: int | None = None
    ticket_limit_us: int | None = None
    h2_guess: bool = False
    greeting_us: int | None = None
    request_us: int | None = None
    response_us: int | None = None
    open_request_us: int | None = None
    turn_count: int = 0
    turn_sum_us: int = 0
    turn_max_us: int = 0
    turns_timed: bool = True
    unsettled: bool = False
    spoke: bool = False
    unused: bool = False
    log_full: bool = False


# Where the handshake ended and what came after, as both generations of the protocol leave it.
@dataclass(slots=True)
class _Stages:
    result: Result | None = "incomplete"
    done_us: int | None = None
    resumed: bool | None = None
    early_data: bool | None = None
    alert_from: Side | None = None  # an encrypted alert told by its length
    after: After | None = None


def analyze(
    log: Sequence[Record],
    *,
    client: ClientHello | None,
    server: ServerHello | None,
    log_full: bool,
    gap_rx: bool,
    gap_tx: bool,
    alert_tx: int | None,
    alert_rx: int | None,
    path_us: int | None = None,
) -> Wire:
    """Find handshake, first request and turns in the record log of one connection.

    Args:
        log: record starts of both directions in order of time, from the ClientHello on.
        client, server: the hellos, where they were caught; of two ServerHellos the later.
        log_full: more records may have followed.
        gap_rx, gap_tx: records of that direction are missing.
        alert_tx, alert_rx: description of the first alert sent and received, in the clear;
            ENCRYPTED_ALERT for one that was not; None for none.
        path_us: the shortest round trip that TCP had.
    Returns:
        Times in microseconds on the log's clock.
    """
    start = 0
    size = len(log)
    while start < size and (log[start][3] or log[start][2] != _HANDSHAKE):
        start += 1
    if start == size:
        return Wire()
    end = size
    while not log[end - 1][2]:  # entries never written: the kernel gave up before
        end -= 1
    if start or end < size:
        log_full = log_full or end < size
        log = log[start:end]

    tls13 = _is_tls13(log, server)
    stages = _stages_13(log, client, server, gap_tx) if tls13 else _stages_12(log, server)
    result = stages.result
    alert: str | None = None
    alert_from = stages.alert_from
    waiting_for: Side | None = None
    if result == "incomplete":
        result, alert, alert_from = _verdict(alert_tx, alert_rx)
        if result == "incomplete":
            if log_full or gap_rx or gap_tx:
                result = None
            else:
                waiting_for = _waiting_for(log)

    turns = Turns()
    if stages.after is not None:
        after = stages.after
        if path_us is not None:
            after = replace(after, least_trip_us=min(after.trip_us, path_us))
        turns = find_turns(after, client, server)
    version = None
    if server is not None:
        version = server.version
    elif tls13:
        version = "TLSv1.3"
    return Wire(
        hello_us=_known(log[0][0]),
        handshake_done_us=_known(stages.done_us),
        version=version,
        result=result,
        alert=alert,
        alert_from=alert_from,
        waiting_for=waiting_for,
        resumed=stages.resumed,
        early_data=stages.early_data,
        tickets=None if gap_rx else turns.tickets,
        ticket_limit_us=stages.after.ticket_limit_us if stages.after is not None else None,
        h2_guess=turns.h2,
        greeting_us=_known(turns.greeting_us),
        request_us=_known(turns.request_us),
        response_us=_known(turns.response_us),
        open_request_us=_known(turns.open_request_us),
        turn_count=turns.count,
        turn_sum_us=turns.sum_us,
        turn_max_us=turns.max_us,
        turns_timed=turns.timed,
        unsettled=turns.unsettled,
        unused=(
            stages.after is not None
            and stages.done_us is not None
            and stages.early_data is None
            and turns.quiet
            and not (log_full or gap_rx or gap_tx)
        ),
        log_full=log_full,
        spoke=bool(turns.tickets) or turns.request_us is not None or turns.greeting_us is not None,
    )


def _known(at_us: int | None) -> int | None:
    return None if at_us is None or at_us >= LATE_US else at_us


# Whether this is TLS 1.3: as the ServerHello says, else as the records' types do. Data is
# received before a Finished that is no data in TLS 1.3 alone; there, what follows a server's
# CCS is never a handshake record, but for a ServerHello after the client's second hello.
def _is_tls13(log: Sequence[Record], server: ServerHello | None) -> bool:
    if server is not None:
        return server.version_number >= 0x0304
    last = None
    for record in log:
        this = record[2], record[3]
        if this == (_HANDSHAKE, True) and last == (_CCS, True):
            return False
        if this == (_DATA, True):
            return True
        last = this
    return False


# ---- up to TLS 1.2 --------------------------------------------------------------------------


def _stages_12(log: Sequence[Record], server: ServerHello | None) -> _Stages:
    ccs_first: bool | None = None  # direction of the first CCS: received = resumed
    ccs = [False, False]
    finished = [-1, -1]
    data = []
    answered = False
    for record in log:
        kind, rx = record[2], record[3]
        if kind == _CCS:
            if ccs_first is None:
                ccs_first = rx
            ccs[rx] = True
        elif kind == _HANDSHAKE:
            if ccs[rx] and finished[rx] < 0:
                finished[rx] = record[0]
        elif kind == _DATA:
            data.append(record)
            answered = answered or rx

    stages = _Stages()
    if finished[0] >= 0 and finished[1] >= 0 and ccs_first is not None:
        stages.result = "ok"
        stages.resumed = ccs_first
        stages.done_us = finished[0 if ccs_first else 1]
    elif answered:  # it did end; the log has a gap where
        stages.result = "ok"
    if stages.result == "ok":
        overhead = 0
        name = server.cipher if server is not None else ""
        if "_GCM_" in name or name.endswith("_CCM"):
            overhead = 24  # explicit nonce 8, tag 16
        elif "_CHACHA20_" in name or name.endswith("_CCM_8"):
            overhead = 16
        reply_us = next((r[0] for r in log if r[2] == _HANDSHAKE and r[3]), log[0][0])
        stages.after = After(
            data=data,
            tx_overhead=overhead,
            rx_overhead=overhead,
            trip_us=reply_us - log[0][0],
            left_us=next((r[0] for r in reversed(log) if r[2] == _ALERT and not r[3]), None),
        )
    return stages


# ---- TLS 1.3 --------------------------------------------------------------------------------


def _stages_13(
    log: Sequence[Record],
    client: ClientHello | None,
    server: ServerHello | None,
    gap_tx: bool,
) -> _Stages:
    finished, tag = _finished_lengths(server)
    stages = _Stages()
    if server is not None and not server.hello_retry:
        stages.resumed = server.psk_selected
    elif client is not None and not client.psk_offered and not client.truncated:
        stages.resumed = False

    # The server's flight begins with its first encrypted record.
    flight = 0
    size = len(log)
    early = []
    hello_us = reply_us = log[0][0]
    trip_us: int | None = None
    while flight < size:
        at, _, kind, rx, _ = log[flight]
        if kind == _DATA:
            if rx:
                break
            early.append(log[flight])
        elif kind == _HANDSHAKE:
            if rx:
                reply_us = at
                if trip_us is None or reply_us - hello_us < trip_us:
                    trip_us = reply_us - hello_us
            else:
                hello_us = at
        flight += 1
    if early:
        stages.early_data = False
    if flight == size:
        return stages

    mine = [i for i in range(flight + 1, size) if log[i][2] == _DATA and not log[i][3]]
    alert = (2 + 1 + tag, 2 + 1 + tag + JAVA_PADDING)
    theirs_last = next((r for r in reversed(log) if r[2] == _DATA and r[3]), None)
    if not mine:
        if theirs_last is not None and theirs_last[1] in alert:
            stages.result, stages.alert_from = "alert", "server"
        return stages
    if len(mine) == 1 and log[mine[0]][1] in alert:
        stages.result, stages.alert_from = "rejected", "client"
        return stages

    done, certificate = _client_finished(log, mine, finished, bool(early), gap_tx)
    if done is None:
        # Not found. If the server went on talking the handshake did end, no telling where.
        if any(r[3] and r[2] == _DATA for r in log[mine[0] :]):
            stages.result = "ok"
        return stages

    end = mine[done]
    stages.result = "ok"
    stages.done_us = log[end][0]
    tx_overhead = rx_overhead = 1 + tag
    if log[end][1] == finished[-1]:
        tx_overhead += JAVA_PADDING
    theirs = [r for r in log[flight:end] if r[3] and r[2] == _DATA]
    # A server that pads does so with its Finished too. Java's shares a record with the rest of
    # its flight, as in stacks that do not pad, which leaves it open.
    if not early and theirs[-1][1] == finished[-1]:
        rx_overhead += JAVA_PADDING

    after = log[end + 1 :]
    if certificate:
        # Asked for a certificate and content with it? An alert at once, or instead of the answer,
        # says no; a later one says goodbye to who asked nothing.
        answers = [r for r in after if r[3] and r[2] == _DATA]
        asked = any(not r[3] and r[2] == _DATA and r[1] not in alert for r in after)
        at_once = log[end][0] + 2 * (trip_us or 0) + TICKET_SLACK_US
        if len(answers) == 1 and answers[0][1] in alert and (asked or answers[0][0] <= at_once):
            stages.result, stages.alert_from = "alert", "server"
            return stages

    data = [r for r in after if r[2] == _DATA]
    if early and done > 0 and log[mine[done - 1]][1] in (5 + tag, 5 + tag + JAVA_PADDING):
        # EndOfEarlyData: it was taken, so it is the request, and the answer may have come
        # right behind the server's own Finished.
        stages.early_data = True
        past = next((i for i, r in enumerate(theirs) if r[1] in finished), 0) + 1
        data = [*early, *theirs[past:], *data]
    stages.after = After(
        data=data,
        tx_overhead=tx_overhead,
        rx_overhead=rx_overhead,
        rx_may_pad=len(theirs) == 1,
        trip_us=trip_us or 0,
        ticket_limit_us=log[end][0] + 2 * (trip_us or 0) + TICKET_SLACK_US,
        certificate=certificate,
        finished=finished,
        left_us=next((r[0] for r in reversed(data) if not r[3] and r[1] == tx_overhead + 2), None),
    )
    return stages


# Index into mine of the record that holds the client's Finished, and whether a certificate,
# perhaps an empty one, went before it.
def _client_finished(
    log: Sequence[Record],
    mine: Sequence[int],
    finished: Sequence[int],
    early: bool,
    gap_tx: bool,
) -> tuple[int | None, bool]:
    first = mine[0]
    for place, i in enumerate(mine):
        if log[i][1] in finished:
            return place, place > 0 and not early
        if not early and any(r[3] and r[2] == _DATA for r in log[first + 1 : i]):
            break  # answered already: it lies before
    if early or gap_tx:
        return None, False
    # Certificate and Finished share a record, the first that is not full.
    for place, i in enumerate(mine):
        if log[i][1] < _FULL_RECORD:
            return place, True
    return None, False


# Lengths of a record that holds a Finished and nothing else, padded last; length of the tag.
def _finished_lengths(server: ServerHello | None) -> tuple[tuple[int, ...], int]:
    if server is None:
        return (53, 69, 85), 16
    number = server.cipher_number
    name = CIPHER_NAMES.get(number, "")
    tag = 16
    if number == 0x1305:  # CCM_8
        tag = 8
    elif number in (0xC0B4, 0xC0B5):  # integrity only: an HMAC
        tag = 32 if number == 0xC0B4 else 48
    if name.endswith("_SHA384"):
        digest = 48
    elif name.endswith("_SHA512"):
        digest = 64
    else:
        digest = 32
    length = 4 + digest + 1 + tag
    return (length, length + JAVA_PADDING), tag


# ---- a handshake that did not end -----------------------------------------------------------


# What alerts make of a handshake that did not end.
def _verdict(tx: int | None, rx: int | None) -> tuple[Result, str | None, Side | None]:
    # A client hardly encrypts one before TLS 1.2 is done but to say that it closes.
    told = tx not in (None, _CLOSE_NOTIFY, _USER_CANCELED, ENCRYPTED_ALERT)
    if rx not in (None, _CLOSE_NOTIFY) and not (rx == _UNRECOGNIZED_NAME and told):
        return "alert", _name(rx), "server"
    if told:
        if tx in CERTIFICATE_ALERTS:
            return "rejected", _name(tx), "client"
        return "alert", _name(tx), "client"
    return "incomplete", None, None


def _name(alert: int | None) -> str | None:
    return None if alert is None or alert >= ENCRYPTED_ALERT else alert_name(alert)


# Whose turn it was when the log ends. CCS do not count: TLS 1.3 sends them at any time.
def _waiting_for(log: Sequence[Record]) -> Side:
    for record in reversed(log):
        if record[2] != _CCS:
            return "client" if record[3] else "server"
    return "server"
