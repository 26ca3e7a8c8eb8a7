"""HTTP/2 inside TLS, told from the lengths, directions and times of its records.

A frame is 9 bytes and its payload. SETTINGS are 9 + 6 for each setting, their acknowledgement 9,
WINDOW_UPDATE 13, PING 17; a record of TLS adds what its cipher does. What a server sends comes in
a fixed order: session tickets, its SETTINGS, then, at any time, control frames, and the answer
no sooner than a round trip after the request. So the answer is the first record after SETTINGS
that cannot be made of control frames alone. A header block that is as long as control frames is
taken for an answer only where these would have no reason to come; where more than one reading is
left whose times differ, nothing is told.

Sources: RFC 9113 sections 3.4, 4.1, 6.5, 6.7 and 6.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

from monitor.wire.records import JAVA_PADDING, LATE_US, After, Record, Turns

__all__ = ["First", "first_turn", "later_turns"]

SAME_US: Final = 1000
"""Two readings whose times are no further apart tell the same."""

_SAME_PART: Final = 50  # likewise, of what they tell

# What a busy server may take to acknowledge, over the round trip.
_SLACK_US: Final = 10_000
# What a client takes at most to acknowledge SETTINGS, if it does.
_ACKED_US: Final = 100_000
# What a client takes at most to leave once it has its answer; who gives up has waited longer.
_SATISFIED_US: Final = 50_000
# What a client that waited for the server's SETTINGS may take to ask.
_AT_ONCE_US: Final = 5000

_ACK: Final = 9  # of SETTINGS; an empty DATA
_NOTHING: Final = frozenset((_ACK,))  # no header block is empty
_UPDATE: Final = 13  # WINDOW_UPDATE; RST_STREAM
_PING: Final = 17  # or GOAWAY
_PREFACE: Final = 24
_PRIORITY: Final = 14
# What HTTP/1.1 does not send: a body after a head too short to announce one.
_NO_BODY: Final = frozenset(range(38))
_CONTINUE: Final = frozenset((25,))
_SHORTEST: Final = frozenset((_ACK, _UPDATE, _PING, 2 * _ACK, _ACK + _UPDATE, 2 * _UPDATE))
# Implementations have up to seven settings, with up to three WINDOW_UPDATEs. Some clients send
# SETTINGS twice, to be acknowledged twice.
_SETTINGS: Final = frozenset(9 + 6 * n for n in range(8))
_SETTINGS_FAR: Final = 160
_ACKS_MOST: Final = 2
_UPDATES_MOST: Final = 3
_UPDATES_OF_UPLOAD: Final = 9


def _opening(updates: int) -> tuple[frozenset[int], ...]:
    return tuple(
        frozenset(n + _UPDATE * k + _ACK * acks for n, k in product(_SETTINGS, range(updates + 1)))
        for acks in range(_ACKS_MOST + 1)
    )


def _controls(updates: int) -> tuple[frozenset[int], ...]:
    some = {_UPDATE * k for k in range(1, updates + 1)}
    some |= {_PING, _PING + _UPDATE, 2 * _PING, _PRIORITY}
    many = range(10, updates + 1)  # a body that was sent faster than the server answered
    return (
        frozenset(some),
        *(
            frozenset(_UPDATE * k + _ACK * n for k in (0, 1, 2, *many))
            for n in range(1, _ACKS_MOST + 1)
        ),
    )


# By whether a body is sent, for which the other side opens its window again and again.
_OPENING: Final = (_opening(_UPDATES_MOST), _opening(_UPDATES_OF_UPLOAD))
_CONTROL: Final = (_controls(_UPDATES_MOST), _controls(100))
_PREFACES: Final = frozenset(
    _PREFACE + n + _UPDATE * k for n, k in product(_SETTINGS, range(3))
) | {_PREFACE}
# What begins like a preface and is longer may be one with the smallest of requests; these are what
# curl and Go, Chrome, and hyper-h2 (Python) begin with.
_PREFACE_KNOWN: Final = frozenset((64, 70, 82))
_LEAST_ASKING: Final = 62
# A client's acknowledgement, with WINDOW_UPDATEs or a PING. A request has a longer block.
_CLIENT_ACK: Final = frozenset((_ACK, _ACK + _UPDATE, _ACK + _PING, _ACK + 2 * _UPDATE))
_BEFORE_REQUEST: Final = frozenset((_UPDATE, 2 * _UPDATE, _PRIORITY, _PING)) | _CLIENT_ACK
# Later streams: up to three control frames in one record.
_SINGLE: Final = frozenset((_ACK, _UPDATE, _PING))
_SEVERAL: Final = frozenset(
    sum(some) for n in (1, 2, 3) for some in product((_ACK, _UPDATE, _PING), repeat=n)
)

_BODY: Final = 1024  # bytes in a record: part of a body

_TICKET_MIN: Final = 60
_TICKET_MAX: Final = 4096
_TICKETS_MAX: Final = 5
_TICKET_BLOCK: Final = 16  # what two of one server may differ by


@dataclass(slots=True)
class First:
    """The first turn of an HTTP/2 connection, as indices into its records.

    ``unsettled``: there was an answer, or may have been, but which record it is cannot be told.
    ``certain``: it is HTTP/2; else it may as well be HTTP/1.1.
    """

    tickets: set[int] = field(default_factory=set)
    request: int | None = None
    answer: int | None = None
    unsettled: bool = False
    certain: bool = True


def first_turn(data: Sequence[Record], after: After, *, known: bool) -> First | None:
    """Find the first request and its answer.

    Args:
        data: without closing alerts.
        known: HTTP/2 was chosen; else it was one of several that were offered.
    Returns:
        None where this is not HTTP/2.
    """
    reader = _Reader(data, after)
    sent = reader.sent
    if not sent:
        # SETTINGS alone, if anything: a client that never spoke
        return First(tickets=reader.tickets) if known or reader.opened_by_server() else None
    least = reader.plain(sent[0])
    if not (known or least == _PREFACE or least >= _PREFACE + 9):
        return None
    certain = known or reader.is_http2()
    if not certain and not reader.may_be_http2():
        return None
    found = reader.first()
    found.certain = certain
    return found


class _Reader:
    def __init__(self, data: Sequence[Record], after: After) -> None:
        self.data = data
        self.after = after
        self.sent = [i for i, r in enumerate(data) if not r[3]]
        self.received = [i for i, r in enumerate(data) if r[3]]
        self.uploads = any(self.plain(i) >= _BODY for i in self.sent)
        self.body_end = max((i for i in self.sent if self.plain(i) >= _BODY), default=0)
        self.opening = _OPENING[self.uploads]
        self.tickets = self._tickets()
        self.received = self.received[len(self.tickets) :]
        self.least_us = after.least_trip_us // 2

    def plain(self, index: int) -> int:
        """Bytes inside a record that was sent."""
        return self.data[index][1] - self.after.tx_overhead

    def holds(self, lengths: frozenset[int], index: int) -> bool:
        """Whether a record received may hold so many bytes."""
        length = self.data[index][1] - self.after.rx_overhead
        return length in lengths or (self.after.rx_may_pad and length - JAVA_PADDING in lengths)

    def opens(self, index: int) -> bool:
        """Whether a record received may be the server's SETTINGS and no answer.

        Or what follows them: amid a body they may have been taken for WINDOW_UPDATEs, and left out.
        """
        if self.uploads and self.holds(_CONTROL[1][0], index):
            return True
        return any(self.holds(lengths, index) for lengths in self.opening)

    # How many of the first records received are tickets: those before SETTINGS, which come first
    # of all that HTTP/2 sends. Without a record of SETTINGS alone, a run of equal ones.
    def _tickets(self) -> set[int]:
        limit = self.after.ticket_limit_us
        if limit is None:
            return set()
        rows = self.received
        data = self.data
        most = 0
        while (
            most < min(len(rows), _TICKETS_MAX)
            and _TICKET_MIN <= data[rows[most]][1] <= _TICKET_MAX
        ):
            if most and abs(data[rows[most]][1] - data[rows[0]][1]) not in (0, _TICKET_BLOCK):
                break
            most += 1
        followed = 0 < most < len(rows) and self.opens(rows[most])
        # a pair of small ones may be as long as SETTINGS
        if followed and (most > 1 or not self.opens(rows[0])):
            return set(rows[:most])
        for count in range(most):
            if self.opens(rows[count]):
                return set(rows[:count])
        in_time = most and data[rows[most - 1]][0] <= limit
        return set(rows[:most]) if most > 1 and in_time else set()

    # ---- whether this is HTTP/2 at all -------------------------------------------------------

    def opened_by_server(self) -> bool:
        """Whether the server spoke, in the length of SETTINGS, to a client that had not."""
        heard = self.received
        return bool(heard) and self.opens(heard[0])

    def is_http2(self) -> bool:
        """Whether something was said that HTTP/1.1 does not say."""
        sent, heard = self.sent, self.received
        if self.plain(sent[0]) == _PREFACE:
            return True
        if not heard:
            return False
        if self.plain(sent[0]) in _PREFACE_KNOWN and sent[1:2] < heard[:1] and sent[1:]:
            return True  # of a request with a body, a head would be longer
        opening_us = self.data[heard[0]][0]
        asked_us = self.data[sent[0]][0]
        if (heard[0] < sent[0] or opening_us - asked_us < self.least_us) and self.opens(heard[0]):
            return True  # it speaks first
        if self.holds(_CONTINUE, heard[0]):
            return False  # lets a body come, however short
        after = [self.plain(index) for index in sent if index > heard[0]]
        if self.opens(heard[0]) and self._is_sending(heard[0]):
            asked_us = max(self.data[index][0] for index in sent if index < heard[0])
            if opening_us - asked_us < self.least_us:
                return True  # it speaks before it can have the body
        for index in heard[1:]:
            if index - 1 in sent and index < sent[-1] and self.holds(_SHORTEST, index):
                return True  # no head of an answer is so short
        short = self.holds(_NO_BODY, heard[0]) and len(heard) > 1
        if short and heard[1] < sent[-1] and self.holds(_SHORTEST, heard[1]):
            return True
        return bool(after) and (after[0] in _CLIENT_ACK | _SINGLE or _ACK in after)

    def may_be_http2(self) -> bool:
        """Whether it could be HTTP/2 although nothing proves it."""
        heard = self.received
        # a client that goes on after SETTINGS, or waits, acknowledges them
        if not heard or not self.opens(heard[0]):
            return False
        if len(heard) < 2:
            return False
        if self.sent[-1] > heard[0]:
            return heard[0] < self.body_end and self._is_sending(heard[0])
        return self.data[heard[1]][0] - self.data[heard[0]][0] <= _ACKED_US

    # Whether a body was under way by then.
    def _is_sending(self, index: int) -> bool:
        return any(self.plain(mine) >= _BODY for mine in self.sent if mine < index)

    # ---- the first turn ----------------------------------------------------------------------

    def first(self) -> First:
        found = First(tickets=self.tickets)
        asked, merged = self._request()
        heard = self.received
        if not heard:
            found.request = asked if asked is not None else merged
            return found
        request = asked if asked is not None else self.sent[0]
        answer, unsettled = self._answer(request)
        if asked is not None and answer is not None and asked > answer:
            # what seemed to ask came after an answer: the preface had the request in it
            asked, request = None, self.sent[0]
            answer, unsettled = self._answer(request)
        if answer is None and not unsettled:
            if asked is not None or merged is not None:
                found.request = request
            return found
        found.request = request
        found.answer = answer
        found.unsettled = unsettled
        if asked is not None and merged is not None and not self._waited(asked):
            # the request, or its body after a head that left with the preface
            apart = self.data[asked][0] - self.data[merged][0]
            took = self.data[answer][0] - self.data[asked][0] if answer is not None else 0
            if apart > max(SAME_US, took // _SAME_PART):
                found.answer, found.unsettled = None, True
        return found

    # The record that begins the request, None where nothing follows the preface; and the preface's
    # own where the request may be in it.
    def _request(self) -> tuple[int | None, int | None]:
        sent = self.sent
        size = self.plain(sent[0])
        if size not in _PREFACES:
            return sent[0], None
        rest = sent[1:]
        if size == _PREFACE:
            if rest and self.plain(rest[0]) in _OPENING[0][0]:
                rest = rest[1:]
            elif not rest:
                return None, None
        settled = size < _LEAST_ASKING or size in _PREFACE_KNOWN
        for index in rest:
            if self.plain(index) not in _BEFORE_REQUEST:
                return index, None if settled else sent[0]
        return None, None if settled else sent[0]

    # Whether a client that waits for the server's SETTINGS would have asked just then.
    def _waited(self, asked: int) -> bool:
        if not self.received or self.received[0] > asked:
            return False
        return self.data[asked][0] - self.data[self.received[0]][0] <= _AT_ONCE_US

    # The record that begins the answer, and whether that is not to be told.
    def _answer(self, request: int) -> tuple[int | None, bool]:
        data, heard = self.data, self.received
        earliest = data[request][0] + self.least_us
        opening = heard[0]
        rest = heard[1:]
        if not self.opens(opening):
            if opening > request and data[opening][0] >= earliest:
                return self._answer_with_settings(opening)
            rest = heard
        acks_left = _ACKS_MOST - self._acks(self.opening, opening)
        if acks_left < 0:  # no SETTINGS
            acks_left = _ACKS_MOST
        late: int | None = None  # a control frame's length where none had a reason to come
        doubtful = [opening] if opening > request and data[opening][0] >= earliest else []
        left_us = self.after.left_us
        window_us = self.after.trip_us * 2 + _SLACK_US
        cause_us = max(data[opening][0], data[request][0])
        for index in rest:
            at = data[index][0]
            for mine in self.sent:
                if request < mine < index and self.plain(mine) not in _CLIENT_ACK:
                    cause_us = max(cause_us, data[mine][0])
            early = index < request or at < earliest
            if left_us is not None and at > left_us:
                break
            # no header block is empty; no answer comes before the last of a body, but for a refusal
            if self.holds(_NOTHING, index) or (index < self.body_end and self._reopens(index)):
                continue
            acks = self._acks(_CONTROL[self.uploads], index)
            if 0 < acks <= acks_left:
                acks_left -= acks
                continue
            if acks:
                if early:
                    continue
                if late is not None and at - data[late][0] > SAME_US:
                    return None, True
                return index, False
            if early:
                continue
            uncalled = at > cause_us + window_us and not self._is_ping(index)
            if uncalled and not (self._uploads(request, index) and self._reopens(index)):
                late = index if late is None else late
            else:
                doubtful.append(index)
        if late is not None:
            return late, False
        # whoever leaves just then has what was asked for
        if len(doubtful) == 1:
            patience_us = max(window_us, _SATISFIED_US)
            if left_us is not None and left_us - data[doubtful[0]][0] <= patience_us:
                return doubtful[0], False
        return None, bool(doubtful)

    # SETTINGS and answer in one record, unless it may be a lone ticket, or is small and may be
    # settings as nobody has them.
    def _answer_with_settings(self, opening: int) -> tuple[int | None, bool]:
        data = self.data
        at, length = data[opening][:2]
        limit = self.after.ticket_limit_us
        ticket = limit is not None and at <= limit and length <= _TICKET_MAX and not self.tickets
        if length - self.after.rx_overhead > _SETTINGS_FAR and not ticket:
            return opening, False
        for index in range(opening + 1, len(data)):
            if not data[index][3]:
                if self.plain(index) not in _BEFORE_REQUEST:
                    break
            elif self._acks(_CONTROL[self.uploads], index) > _ACKS_MOST and not self.holds(
                _NOTHING, index
            ):
                if data[index][0] - at > SAME_US:
                    return None, True
                if not ticket:
                    break
        return opening, False

    # How many acknowledgements a record holds at least that is one of these; more than there are
    # where it is none.
    def _acks(self, forms: Sequence[frozenset[int]], index: int) -> int:
        for acks, lengths in enumerate(forms):
            if self.holds(lengths, index):
                return acks
        return _ACKS_MOST + 1

    # Whether a record may hold nothing but WINDOW_UPDATEs, be they many, and acknowledgements.
    def _reopens(self, index: int) -> bool:
        size = self.data[index][1] - self.after.rx_overhead
        return any(size >= _ACK * n and not (size - _ACK * n) % _UPDATE for n in range(3))

    # Whether a PING was answered at once.
    def _is_ping(self, index: int) -> bool:
        at = self.data[index][0]
        return self.holds(frozenset((_PING,)), index) and any(
            self.plain(mine) == _PING and self.data[mine][0] - at <= _AT_ONCE_US
            for mine in self.sent
            if mine > index
        )

    # Whether a body followed the request, for which the server opens its window.
    def _uploads(self, request: int, answer: int) -> bool:
        return self.plain(request) >= _BODY or any(
            request < mine < answer and self.plain(mine) not in _BEFORE_REQUEST
            for mine in self.sent
        )


# HTTP/2's control frames go both ways at any time, and the fields of a request or an answer that
# was made before take no more bytes than they. So what is as long as one control frame, or as
# several, is a request or an answer only where nothing better is there.
def later_turns(data: Sequence[Record], turns: Turns, after: After) -> None:
    """Add the turns of records that come after the first answer."""

    def heard(lengths: frozenset[int], length: int) -> bool:
        length -= after.rx_overhead
        return length in lengths or (after.rx_may_pad and length - JAVA_PADDING in lengths)

    maybe_asked: int | None = None
    maybe_answered: int | None = None
    complete = False  # what may be the answer has been followed by an empty frame, its end
    for at, length, _, rx, _ in data:
        if not rx:
            if length - after.tx_overhead not in _SEVERAL:
                if maybe_answered is not None:
                    turns.answer(maybe_answered)
                    maybe_answered = None
                turns.ask(at)
                complete = False
            elif length - after.tx_overhead != _ACK:
                if complete and maybe_answered is not None:
                    turns.answer(maybe_answered)
                    maybe_answered, complete = None, False
                maybe_asked = at
            continue
        one = heard(_SINGLE, length)
        since_us = at - maybe_asked if maybe_asked is not None else -1
        if not one and turns.open_request_us is None and maybe_asked is not None and at >= LATE_US:
            turns.timed = False  # whether that was a request is not to be told
        # sooner than a round trip it is more of the answer before
        if not one and turns.open_request_us is None and since_us >= after.trip_us:
            turns.ask(at - since_us)
        if one:
            complete = complete or heard(_NOTHING, length)
        elif not heard(_SEVERAL, length):
            turns.answer(at)
            maybe_answered = maybe_asked = None
        elif maybe_answered is None and turns.open_request_us is not None:
            maybe_answered, complete = at, False
    if maybe_answered is not None:
        turns.answer(maybe_answered)
