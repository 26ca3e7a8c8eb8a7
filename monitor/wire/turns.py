"""Requests and answers in the encrypted application data of a TLS connection.

By record lengths, times and directions alone. In TLS 1.3 some of that data is no answer:

- Session tickets come about a round trip after Finished: OpenSSL and rustls servers send two
  or more of equal length, Go and Java one, a resumed OpenSSL session one; BoringSSL sends its
  own in front of the answer. The answer follows. If nothing else comes before the client's
  next request, that flight was the answer, except where its form leaves no doubt.
- Closing alerts are two bytes long.
- HTTP/2's own frames pass both ways: h2_records.py.

Sources: RFC 8446 sections 4.6.1 and 6. The lengths of real servers' tickets are recorded in
tests/data/tls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from monitor.wire.h2_records import SAME_US, First, first_turn, later_turns
from monitor.wire.hello import ClientHello, ServerHello
from monitor.wire.records import JAVA_PADDING, After, Record, Turns

__all__ = ["TICKET_SLACK_US", "find_turns"]

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

_HTTP = frozenset(("h2", "http/1.1", "http/1.0"))

# Up to TLS 1.2, of the ciphers that HTTP/2 allows: GCM and CCM, ChaCha20 and CCM_8.
_OVERHEADS = (24, 16)

# RFC 8446 section 4.6.3: type, length, and whether the other side is to do it too.
_KEY_UPDATE = 5
_KEY_UPDATES = frozenset((_KEY_UPDATE,))
# A CertificateVerify, after its 8 bytes of type, lengths and algorithm: Ed25519, ECDSA, Ed448, RSA.
_VERIFY = frozenset(
    8 + n for n in (64, 70, 71, 72, 102, 103, 104, 114, 137, 138, 139, 256, 384, 512)
)


def find_turns(after: After, client: ClientHello | None, server: ServerHello | None) -> Turns:
    """Find requests and answers among the application data records of one connection."""
    turns = Turns()
    data = _without_alerts(after)
    if not data:
        return turns
    turns.quiet = _is_quiet(data, after, client)
    chosen = _chose_h2(after, client, server)
    first: First | None = None
    if chosen is not False:
        if not after.tx_overhead and (client is not None or _speaks_h2(data, after)):
            turns.h2 = True  # and no lengths to judge by
            turns.unsettled = True
            return turns
        if after.tx_overhead:
            first = first_turn(data, after, known=bool(chosen))
    # a lost ClientHello: HTTP/2 is then but a chance, which a body under way makes likely
    unlikely = client is None and not any(
        length > _TICKET_USUAL and not rx for _, length, _, rx, _ in data
    )
    if first is None or (not first.certain and unlikely):
        _one_after_the_other(data, turns, after, client)
        return turns
    if not first.certain:
        other = Turns()
        _one_after_the_other(data, other, after, client)
        if not first.unsettled and _agree(first, other, data):
            return other
        turns.request_us = other.request_us
        turns.unsettled = True
        return turns
    _streams(data, first, turns, after)
    return turns


# Whether the client has said nothing, and the server nothing of its own accord: of HTTP there are
# only SETTINGS, and words about the silence.
def _is_quiet(data: Sequence[Record], after: After, client: ClientHello | None) -> bool:
    if not all(record[3] for record in data):
        return False
    if client is not None and client.alpn and _HTTP.issuperset(client.alpn):
        return True
    return len(_tickets(data, len(data), after, client)) == len(data)


# Whether HTTP/2 was chosen; None where it was offered and the server's choice is not to be seen.
def _chose_h2(after: After, client: ClientHello | None, server: ServerHello | None) -> bool | None:
    if after.ticket_limit_us is None and server is not None and not server.truncated:
        return server.alpn == "h2"
    if client is None:
        return None
    if "h2" not in client.alpn:
        return None if client.truncated and not client.alpn else False
    return True if len(client.alpn) == 1 else None


# Whether this is HTTP/2, of whose TLS (up to 1.2) nothing is known.
def _speaks_h2(data: Sequence[Record], after: After) -> bool:
    for overhead in _OVERHEADS:
        tried = replace(after, tx_overhead=overhead, rx_overhead=overhead)
        first = first_turn(data, tried, known=False)
        if first is not None and first.certain:
            return True
    return False


# Whether HTTP/2 and HTTP/1.1 tell the same of these records.
def _agree(first: First, other: Turns, data: Sequence[Record]) -> bool:
    if first.answer is None or first.request is None:
        return False
    if other.response_us is None or other.request_us is None:
        return False
    asked_us, answered_us = data[first.request][0], data[first.answer][0]
    return (
        abs(asked_us - other.request_us) <= SAME_US
        and abs(answered_us - other.response_us) <= SAME_US
    )


def _streams(data: Sequence[Record], first: First, turns: Turns, after: After) -> None:
    turns.h2 = True
    if after.ticket_limit_us is not None:
        turns.tickets = len(first.tickets)
    if first.request is None:
        return
    turns.ask(data[first.request][0])
    if first.unsettled:
        turns.open_request_us, turns.unsettled = None, True
        return
    if first.answer is not None:
        turns.answer(data[first.answer][0])
        later_turns(data[first.answer + 1 :], turns, after)


def _one_after_the_other(
    data: Sequence[Record], turns: Turns, after: After, client: ClientHello | None
) -> None:
    first = 0  # the first record sent
    while first < len(data) and data[first][3]:
        first += 1
    skip = _tickets(data, first, after, client)
    if after.ticket_limit_us is not None:
        turns.tickets = len(skip)
    if client is not None and client.post_handshake_auth:
        _skip_late_certificate(data, skip, after)
    for index, (at, *_) in enumerate(data[:first]):
        if index not in skip:
            turns.greeting_us = at
            break
    left = [
        record
        for index, record in enumerate(data)
        if index not in skip and not (not record[3] and _is_key_update(data, index, skip, after))
    ]
    _read_turns(left, turns)


def _read_turns(data: Sequence[Record], turns: Turns) -> None:
    for at, _, _, rx, _ in data:
        if not rx:
            turns.ask(at)
        else:
            turns.answer(at)


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
    if at > limit:
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
