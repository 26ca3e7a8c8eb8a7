"""DNS messages: the question, and the addresses in an answer. Strangers chose the bytes.

Source: RFC 1035 section 4.
"""

from __future__ import annotations

from typing import Final

from monitor.correlate.lookup import fold
from monitor.correlate.text import AF_INET, AF_INET6

__all__ = ["first_question", "parse_answer"]

_A, _AAAA = 1, 28
_MAX_RECORDS: Final = 128
_MAX_NAME: Final = 255
# type and class IN, and length, of an A and an AAAA record
_ADDRESS_RECORDS: Final = {(b"\0\1\0\1", 4): AF_INET, (b"\0\x1c\0\1", 16): AF_INET6}


def first_question(data: bytes) -> tuple[bytes, int] | None:
    """The name of the only question, in lower case, and its type if that is of an address."""
    if data[4:6] != b"\0\1":
        return None
    at = 12
    while at < len(data) and data[at]:
        if data[at] > 63:
            return None
        at += 1 + data[at]
    kind = data[at + 1 : at + 3]
    if len(kind) < 2 or kind[1] not in (_A, _AAAA) or kind[0]:
        return None
    return data[12 : at + 1].lower(), kind[1]


def parse_answer(data: bytes) -> tuple[str | None, list[tuple[int, bytes]]]:
    """Read name and addresses out of a DNS response.

    Returns:
        The name asked for, without the dot at its end, and (family, 16 bytes) of each address in
        its order; (None, []) for what cannot be read or answers no address question.
    """
    import dns.exception
    import dns.name

    if data[4:6] != b"\0\1":  # one question
        return None, []
    try:
        # the library reads a chain of labels to its end before it finds the name too long
        name, length = dns.name.from_wire(data[: 12 + _MAX_NAME], 12)
    except (dns.exception.DNSException, ValueError, IndexError):
        return None, []
    at = 12 + length + 4
    if at > len(data) or data[at - 4 : at - 2] not in (b"\0\1", b"\0\x1c"):
        return None, []
    addresses = _addresses(data, at)
    if addresses is None:
        return None, []
    # some resolvers mix capitals in, to be told from forgers
    return fold(name.to_text()), addresses


# The addresses among the answers that begin there; None where they are not as they should be. By
# hand, since a library makes an object of each record, 37 us: 13 ms for what 4 KB may hold.
def _addresses(data: bytes, at: int) -> list[tuple[int, bytes]] | None:
    addresses: list[tuple[int, bytes]] = []
    for _ in range(data[6] << 8 | data[7]):
        while at < len(data) and 0 < data[at] < 64:  # an owner's name is only stepped over
            at += 1 + data[at]
        if at >= len(data) or 64 <= data[at] < 192:
            return None
        at += 2 if data[at] else 1
        if at + 10 > len(data):
            return None
        kind, size = data[at : at + 4], data[at + 8] << 8 | data[at + 9]
        at += 10 + size
        if at > len(data):
            return None
        family = _ADDRESS_RECORDS.get((kind, size))
        if family is not None and len(addresses) < _MAX_RECORDS:
            addresses.append((family, data[at - size : at].ljust(16, b"\0")))
    return addresses
