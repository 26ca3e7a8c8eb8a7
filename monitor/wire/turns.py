"""Requests and answers in the encrypted application data of a TLS connection.

By record lengths, times and directions alone. In TLS 1.3 some of that data is no answer:

- Session tickets come about a round trip after Finished: OpenSSL and rustls servers send two
  or more of equal length, Go and Java one, a resumed OpenSSL session one; BoringSSL sends its
  own in front of the answer. The answer follows. If nothing else comes before the client's
  next request, that flight was the answer, except where its form leaves no doubt.
- Closing alerts are two bytes long.
- HTTP/2 exchanges SETTINGS before anything is answered. They have few possible lengths.

Sources: RFC 8446 sections 4.6.1 and 6; RFC 9113 sections 3.4, 6.5 and 6.9. The lengths of real
servers' tickets are recorded in tests/data/tls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from monitor.wire.hello import ClientHello, ServerHello

__all__ = ["JAVA_PADDING", "LATE_US", "TICKET_SLACK_US", "After", "Record", "Turns", "find_turns"]

Record = tuple[int, int, int, bool, bool]
"""One TLS record start: at_us, length field, content type, received, first in its packet."""

LATE_US = 0xFFFFFFFF
"""What the log says of this time and of any later one."""

JAVA_PADDING = 16
"""Bytes that Java adds to every TLS 1.3 record."""

TICKET_SLACK_US = 10_000
"""What a busy server may take to check a Finished and write a ticket, over the round trip."""

# A ticket's record: identifier-only tickets are the smallest, Java's (1.9 kB) and those that
# carry a client certificate the largest.
_TICKET_MIN = 60
_TICKET_MAX = 4096
_TICKETS_MAX = 4  # rustls sends up to four; a longer run of equal records is data
# With no client certificate in it a ticket is 100 to 600 bytes; servers that begin with small
# records, for the first bytes to be read early, make them a packet long.
_TICKET_USUAL = 1000
# OpenSSL's tickets are encrypted in blocks, and what is in them varies by a byte or two: of two
# tickets one may be a block longer.
_TICKET_BLOCK = 16
# What an acknowledgement is put off by at most.
_DELAYED_ACK_US = 250_000
# A record this long is part of something longer.
_FULL_RECORD = 16384
# How much longer than the ticket itself its message is: type and length 4, lifetime 4, age 4,
# nonce 1 to 33, ticket length 2, extensions 2 to 10.
_TICKET_FRAMING = range(17, 61)

# HTTP/2 frames before the first answer. SETTINGS: 9 + 6 for each of up to 8 settings, perhaps
# with WINDOW_UPDATE (13) or an acknowledgement (9) in the same record.
_SETTINGS = frozenset(9 + 6 * n + more for n in range(9) for more in (0, 9, 13, 22))
# The client's preface is 24 bytes before its SETTINGS; with more than 6 settings it would be
# taken for a request, which comes to the same when the request follows at once.
_PREFACE_ONLY = 24
_PREFACE = frozenset(24 + 9 + 6 * n + more for n in range(7) for more in (0, 13)) | {24}
# Acknowledgement or an empty DATA 9, WINDOW_UPDATE or RST_STREAM 13, PING or GOAWAY 17; and up to
# three of them in one record.
_CONTROL = frozenset((9, 13, 17))
_CONTROLS = frozenset(sum(more) for n in (1, 2, 3) for more in combinations(3 * (9, 13, 17), n))
_SETTINGS_ACK = 9
_EMPTY = frozenset((9,))
_PRELUDE = _SETTINGS | _CONTROL

# RFC 8446 section 4.6.3: type, length, and whether the other side is to do it too.
_KEY_UPDATE = 5
_KEY_UPDATES = frozenset((_KEY_UPDATE,))
# A CertificateVerify, after its 8 bytes of type, lengths and algorithm: Ed25519, ECDSA, Ed448, RSA.
_VERIFY = frozenset(
    8 + n for n in (64, 70, 71, 72, 102, 103, 104, 114, 137, 138, 139, 256, 384, 512)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """Application data records, in order of time, that follow a handshake (or early data).

    ``*_overhead`` is a record's length less the plaintext in it, 0 where that varies;
    ``rx_may_pad``: or JAVA_PADDING more. ``trip_us``: what a round trip takes at most, 0 where
    that was not seen. ``ticket_limit_us``: by then session tickets have
    come, if any do; None where they are not sent as data (up to TLS 1.2). ``certificate``: the
    client sent one, which is then in its tickets. ``finished``: lengths of a record with nothing
    but a Finished.
    """

    data: Sequence[Record]
    tx_overhead: int
    rx_overhead: int
    rx_may_pad: bool = False
    trip_us: int = 0
    ticket_limit_us: int | None = None
    certificate: bool = False
    finished: Sequence[int] = ()


@dataclass(slots=True)
class Turns:
    """What find_turns() found; the fields are those of handshake.Wire, but for times that are
    LATE_US here."""

    h2: bool = False
    tickets: int | None = None
    greeting_us: int | None = None
    request_us: int | None = None
    response_us: int | None = None
    open_request_us: int | None = None
    count: int = 0
    sum_us: int = 0
    max_us: int = 0
    timed: bool = True

    def ask(self, at_us: int) -> None:
        """Something was sent: a request, or more of the one that is open."""
        if self.open_request_us is None:
            self.open_request_us = at_us
        if self.request_us is None:
            self.request_us = at_us

    def answer(self, at_us: int) -> None:
        """Something was received: an answer, if a request is open."""
        if self.open_request_us is None:
            return
        took = max(at_us - self.open_request_us, 0)
        self.open_request_us = None
        if self.response_us is None:
            self.response_us = at_us
        self.count += 1
        if at_us >= LATE_US:
            self.timed = False
            return
        self.sum_us += took
        self.max_us = max(self.max_us, took)


def find_turns(after: After, client: ClientHello | None, server: ServerHello | None) -> Turns:
    """Find requests and answers among the application data records of one connection."""
    turns = Turns()
    data = _without_alerts(after)
    if not data:
        return turns
    tx_over = after.tx_overhead
    h2_possible = bool(tx_over) and _may_be_h2(after, client, server)

    # Acknowledging SETTINGS is never a request, and would split flights.
    acked = False
    if h2_possible:
        kept = [r for r in data if r[3] or r[1] - tx_over != _SETTINGS_ACK]
        acked = len(kept) < len(data)
        data = kept

    first = 0  # the first record sent
    while first < len(data) and data[first][3]:
        first += 1
    skip = _tickets(data, first, after, client, h2_possible)
    if after.ticket_limit_us is not None:
        turns.tickets = len(skip)

    if server is not None and server.alpn is not None:
        turns.h2 = server.alpn == "h2"
    if h2_possible:
        _skip_preludes(data, first, skip, turns, after, acked)

    if client is not None and client.post_handshake_auth:
        _skip_late_certificate(data, skip, after)

    for index, (at, length, _, _, _) in enumerate(data[:first]):
        if index not in skip and not (h2_possible and _holds(_PRELUDE, length, after)):
            turns.greeting_us = at
            break
    left = [
        record
        for index, record in enumerate(data)
        if index not in skip
        and not (not turns.h2 and not record[3] and _is_key_update(data, index, skip, after))
    ]
    if turns.h2:
        _read_streams(left, turns, after)
    else:
        _read_turns(left, turns)
    return turns


def _read_turns(data: Sequence[Record], turns: Turns) -> None:
    for at, _, _, rx, _ in data:
        if not rx:
            turns.ask(at)
        else:
            turns.answer(at)


# HTTP/2's control frames go both ways at any time, and the fields of a request or an answer that
# was made before take no more bytes than they. So what is as long as one control frame, or as
# several, is a request or an answer only where nothing better is there.
def _read_streams(data: Sequence[Record], turns: Turns, after: After) -> None:
    maybe_asked: int | None = None
    maybe_answered: int | None = None
    complete = False  # what may be the answer has been followed by an empty frame, its end
    for at, length, _, rx, _ in data:
        if not rx:
            if length - after.tx_overhead not in _CONTROLS:
                if maybe_answered is not None:
                    turns.answer(maybe_answered)
                    maybe_answered = None
                turns.ask(at)
                complete = False
            elif length - after.tx_overhead != _SETTINGS_ACK:
                if complete and maybe_answered is not None:
                    turns.answer(maybe_answered)
                    maybe_answered, complete = None, False
                maybe_asked = at
            continue
        one = _holds(_CONTROL, length, after)
        since_us = at - maybe_asked if maybe_asked is not None else -1
        if not one and turns.open_request_us is None and maybe_asked is not None and at >= LATE_US:
            turns.timed = False  # whether that was a request is not to be told
        # sooner than a round trip it is more of the answer before
        if not one and turns.open_request_us is None and since_us >= after.trip_us:
            turns.ask(at - since_us)
        if one:
            complete = complete or _holds(_EMPTY, length, after)
        elif not _holds(_CONTROLS, length, after):
            turns.answer(at)
            maybe_answered = maybe_asked = None
        elif maybe_answered is None and turns.open_request_us is not None:
            maybe_answered, complete = at, False
    if maybe_answered is not None:
        turns.answer(maybe_answered)


# A server may want a certificate for what was asked (RFC 8446 section 4.6.2): wanting it is no
# answer, the client's Certificate, CertificateVerify and Finished are no request, and new tickets
# may follow. Told only where each has a record of its own.
def _skip_late_certificate(data: Sequence[Record], skip: set[int], after: After) -> None:
    rest = [index for index in range(len(data)) if index not in skip]
    for at in range(1, len(rest) - 3):
        ways = [data[index][3] for index in rest[at - 1 : at + 5]]
        if (
            ways[:5] == [False, True, False, False, False]
            and ways[5:] != [False]
            and data[rest[at + 2]][1] - after.tx_overhead in _VERIFY
            and data[rest[at + 3]][1] in after.finished
        ):
            end = at + 4
            while end + 1 < len(rest) and data[rest[end]][1] == data[rest[end + 1]][1]:
                end += 1
            tickets = at + 4 < end < len(rest) - 1
            skip.update(rest[at : end + 1 if tickets else at + 4])
            return


# Whether this record, sent before anything was asked, changes keys: what follows is sent as well,
# or is the answer to just that.
def _is_key_update(data: Sequence[Record], index: int, skip: set[int], after: After) -> bool:
    if after.ticket_limit_us is None or data[index][1] - after.tx_overhead != _KEY_UPDATE:
        return False
    for later in range(index + 1, len(data)):
        if later not in skip:
            return not data[later][3] or _holds(_KEY_UPDATES, data[later][1], after)
    return False


# Whether the plaintext of a received record has one of these lengths.
def _holds(lengths: frozenset[int], length: int, after: After) -> bool:
    length -= after.rx_overhead
    return length in lengths or (after.rx_may_pad and length - JAVA_PADDING in lengths)


# The data without each side's closing alert, which TLS 1.3 sends as data of 2 bytes.
def _without_alerts(after: After) -> Sequence[Record]:
    data = after.data
    if after.ticket_limit_us is None:
        return data
    drop = []
    for rx, overhead in ((False, after.tx_overhead), (True, after.rx_overhead)):
        for index in range(len(data) - 1, -1, -1):
            if data[index][3] is rx:
                if data[index][1] - overhead == 2:
                    drop.append(index)
                break
    return [r for i, r in enumerate(data) if i not in drop] if drop else data


# Indices of session tickets in data; first is the index of the first record sent.
def _tickets(
    data: Sequence[Record],
    first: int,
    after: After,
    client: ClientHello | None,
    h2_possible: bool,
) -> set[int]:
    limit = after.ticket_limit_us
    if limit is None:
        return set()
    begin = 0  # of the first flight received
    end = first
    if first == 0:
        while begin < len(data) and not data[begin][3]:
            begin += 1
        end = begin
        while end < len(data) and data[end][3]:
            end += 1
    if begin == end:
        return set()
    at, length = data[begin][:2]
    if not _TICKET_MIN <= length <= _TICKET_MAX:
        return set()
    run = 1
    while begin + run < end and data[begin + run][1] == length:
        run += 1
    if run > _TICKETS_MAX:
        return set()

    # A client that can use none is sent none. OpenSSL sends it two all the same (Go, Erlang).
    useful = client is None or client.psk_modes or client.truncated
    known = _as_long_as_the_one_used(length, after, client)
    large = length > _TICKET_USUAL and not (after.certificate or known)
    if begin and large and (run > 1 or not after.rx_may_pad):
        return set()  # Java's is large, too, and its servers send their flight in one record
    # A server without TCP_NODELAY holds the second ticket back until the first is acknowledged,
    # which a client with nothing to say puts off.
    large_next = end < len(data) and data[end][1] > _TICKET_USUAL
    latest = limit
    if at <= limit and (begin == 0 or large_next):
        latest = max(limit, at + _DELAYED_ACK_US + after.trip_us)
    if run > 1:
        # Equal lengths and then something else, or in time for tickets.
        if begin + run < end or data[begin + run - 1][0] <= latest:
            return set(range(begin, begin + run))
        return set()
    if at > limit or (h2_possible and _holds(_SETTINGS, length, after)):
        return set()
    if (
        begin + (2 if begin else 1) < end
        and abs(data[begin + 1][1] - length) == _TICKET_BLOCK
        and data[begin + 1][0] <= latest
    ):
        return {begin, begin + 1}  # and the answer after them, if they were not unasked
    if begin and useful and large_next:
        # If the body goes on as if nothing had been said, that was no answer. Its twin may have
        # been overtaken by more of the body, which acknowledged it.
        twin = end
        while twin < len(data) and not data[twin][3]:
            twin += 1
        if twin < len(data) and data[twin][1] == length:
            more_us = data[end][0]
            released_us = more_us + after.trip_us + TICKET_SLACK_US if more_us <= latest else 0
            if data[twin][0] <= max(limit, released_us):
                return {begin, twin}
        if _is_body(data, begin, end):
            return {begin}
    if begin == 0:
        # Came unasked. Its twin may have been overtaken by the request.
        found = {0}
        twin = first
        while twin < len(data) and not data[twin][3]:
            twin += 1
        if end == 1 and twin < len(data):
            followed = twin + 1 < len(data) and data[twin + 1][3]
            apart = abs(data[twin][1] - length)
            if not apart or (apart == _TICKET_BLOCK and followed and data[twin][0] <= limit):
                found.add(twin)
        return found if useful or len(found) > 1 else set()
    return {begin} if useful and (known or end - begin > 1) else set()


# Whether what is sent after the flight data[begin:end] goes on with what was sent before it: a full
# record, which no request begins with that has a head of its own, or a large one after a request
# of several records that had such a one. A request of one record, however large, may be followed
# by another like it.
def _is_body(data: Sequence[Record], begin: int, end: int) -> bool:
    more = data[end][1]
    if more >= _FULL_RECORD:
        return True
    sent = [length for _, length, *_ in data[:begin]]
    return more > _TICKET_USUAL and len(sent) > 1 and max(sent) > _TICKET_USUAL


# Whether a ticket is as long as the one that the client came with.
def _as_long_as_the_one_used(length: int, after: After, client: ClientHello | None) -> bool:
    used = client.psk_identity_len if client is not None else None
    return used is not None and length - after.rx_overhead - used in _TICKET_FRAMING


def _may_be_h2(after: After, client: ClientHello | None, server: ServerHello | None) -> bool:
    if after.ticket_limit_us is None and server is not None and not server.truncated:
        return server.alpn == "h2"
    return client is not None and "h2" in client.alpn


# Judge whether this is HTTP/2, and if so skip the client's preface and the server's SETTINGS.
def _skip_preludes(
    data: Sequence[Record],
    first: int,
    skip: set[int],
    turns: Turns,
    after: After,
    acked: bool,
) -> None:
    heard = next((i for i, r in enumerate(data) if r[3] and i not in skip), None)
    settings = heard is not None and _holds(_SETTINGS, data[heard][1], after)
    tx_over = after.tx_overhead
    preface = first < len(data) and data[first][1] - tx_over in _PREFACE
    last = first  # of the records that are preface and SETTINGS; hyper (Rust) sends two
    if preface and data[first][1] - tx_over == _PREFACE_ONLY:
        for record in data[first + 1 : first + 2]:
            last += not record[3] and record[1] - tx_over in _SETTINGS
    # The request is its own record if one follows before anything that could be the answer.
    followed = False
    for index in range(last + 1, len(data)):
        if not data[index][3]:
            followed = data[index][1] - tx_over not in _CONTROLS
            if followed:
                break
        elif index not in skip and not (
            (index == heard and settings) or _holds(_CONTROLS, data[index][1], after)
        ):
            break
    turns.h2 = turns.h2 or (settings and (acked or preface)) or (preface and followed)
    if turns.h2:
        if settings and heard is not None:
            skip.add(heard)
        if preface and followed:
            skip.update((first, last))
