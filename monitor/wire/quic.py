"""QUIC's Initial packets, read with the keys that their own bytes give, and what the rest shows.

Anyone on the path can read Initial packets: their keys follow from the first destination
connection id. Later ones are only counted by their type. Nothing here raises: strangers chose the
bytes, so each datagram is read once, as it comes, and whatever costs time is bounded. The
cryptography is the library's; it is loaded when the first such packet is there.

Sources: RFC 9000 sections 17 and 19 (packets, frames), RFC 9001 section 5 (keys), RFC 9369
(version 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from monitor.wire.hello import ClientHello, ServerHello, parse_client_hello, parse_server_hello

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.ciphers.modes import ECB

__all__ = ["Datagram", "Packet", "Quic", "Reader", "analyze", "packets"]

_V1, _V2 = 0x00000001, 0x6B3343CF
_SALTS: Final = {
    _V1: bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
    _V2: bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
}
_LABELS: Final = {_V1: "quic", _V2: "quicv2"}
# The two bits of a long header's type, by version.
_TYPES: Final = {
    _V1: ("initial", "0rtt", "handshake", "retry"),
    _V2: ("retry", "initial", "0rtt", "handshake"),
}
_MAX_CID: Final = 20
_MAX_DATAGRAMS: Final = 16  # twice QUIC_DATAGRAMS in bpf/udp.bpf.c
_MAX_PACKETS: Final = 6  # of one datagram
_MAX_KEYS: Final = 3  # connection ids tried: the first one, and one after a Retry
# Decryptions tried for each side: a key that does not fit costs as much as one that does.
_MAX_TRIES: Final = 24
_TRIES_AFTER_HELLO: Final = 4  # once its hello is there; a close may still come in an Initial
_MAX_CRYPTO: Final = 4096  # of the TLS messages in one side's Initial packets, as over TCP
# Of one side, and ranges of acknowledgements; Chrome cuts its ClientHello into dozens.
_MAX_FRAMES: Final = 400
_TAG: Final = 16
_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO, _CLOSE = 0, 1, 2, 3, 6, 0x1C
_CRYPTO_ERROR: Final = 0x100  # and the alert's number


class Datagram(NamedTuple):
    """One datagram as it passed."""

    at_us: int
    received: bool
    data: bytes


class Packet(NamedTuple):
    """One packet of a datagram. ``kind``: initial, 0rtt, handshake, retry, or 1rtt."""

    kind: str
    version: int
    dcid: bytes
    scid: bytes
    number_at: int
    """Where the packet number begins, from ``raw``'s begin."""
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Quic:
    """What a connection's first datagrams say.

    ``done_us``: when the client's last handshake packet left before its first 1-RTT packet, the
    handshake's end at the client; None where that was not seen. ``handshake_sent``: the client
    got as far as sending handshake packets. ``alert``: of a close that came in an Initial.
    """

    hello_us: int | None = None
    done_us: int | None = None
    handshake_sent: bool = False
    answered: bool = False
    client: ClientHello | None = None
    server: ServerHello | None = None
    alert: int | None = None
    alert_received: bool = False


def packets(data: bytes) -> Iterator[Packet]:
    """Split a datagram; what cannot be read ends it, and no real one holds so many.

    Source: RFC 9000 section 12.2.
    """
    pos = 0
    for _ in range(_MAX_PACKETS):
        if pos >= len(data):
            return
        first = data[pos]
        if not first & 0x80:
            if first & 0x40:
                yield Packet("1rtt", 0, b"", b"", 0, data[pos:])
            return
        packet = _long_packet(data, pos)
        if packet is None:
            return
        yield packet
        if packet.kind == "retry":
            return
        pos += len(packet.raw)


def _long_packet(data: bytes, pos: int) -> Packet | None:
    if pos + 7 > len(data):
        return None
    version = int.from_bytes(data[pos + 1 : pos + 5], "big")
    types = _TYPES.get(version)
    if types is None:
        return None
    kind = types[data[pos] >> 4 & 3]
    at = pos + 5
    ids = []
    for _ in range(2):
        if at >= len(data) or data[at] > _MAX_CID or at + 1 + data[at] > len(data):
            return None
        ids.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    if kind == "retry":
        return Packet(kind, version, ids[0], ids[1], 0, data[pos:])
    if kind == "initial":
        length, at = _number(data, at)
        at += length
    length, at = _number(data, at)
    if at > len(data) or not length:
        return None
    return Packet(kind, version, ids[0], ids[1], at - pos, data[pos : at + length])


# A variable-length integer and where it ends; past the end of the bytes it is 0.
def _number(data: bytes, pos: int) -> tuple[int, int]:
    if pos >= len(data):
        return 0, len(data) + 1
    size = 1 << (data[pos] >> 6)
    value = int.from_bytes(data[pos : pos + size], "big") & ((1 << (8 * size - 2)) - 1)
    return value, pos + size


class _Keys(NamedTuple):
    aead: AESGCM
    iv: bytes
    mask: Cipher[ECB]


@lru_cache(maxsize=64)
def _initial_keys(version: int, dcid: bytes, server: bool) -> _Keys:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.hmac import HMAC
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

    def expand(secret: bytes, label: str, length: int) -> bytes:
        text = f"tls13 {label}".encode()
        info = length.to_bytes(2, "big") + bytes([len(text)]) + text + b"\0"
        return HKDFExpand(SHA256(), length, info).derive(secret)

    extract = HMAC(_SALTS[version], SHA256())
    extract.update(dcid)
    secret = expand(extract.finalize(), "server in" if server else "client in", 32)
    name = _LABELS[version]
    mask = Cipher(algorithms.AES(expand(secret, f"{name} hp", 16)), modes.ECB())
    return _Keys(AESGCM(expand(secret, f"{name} key", 16)), expand(secret, f"{name} iv", 12), mask)


def _decrypt(packet: Packet, keys: _Keys) -> bytes | None:
    from cryptography.exceptions import InvalidTag

    at, raw = packet.number_at, packet.raw
    sample = raw[at + 4 : at + 20]
    if len(sample) < 16:
        return None
    encryptor = keys.mask.encryptor()
    mask = encryptor.update(sample)
    first = raw[0] ^ (mask[0] & 0x0F)
    size = (first & 3) + 1
    number = bytes(a ^ b for a, b in zip(raw[at : at + size], mask[1:], strict=False))
    if len(raw) < at + size + _TAG:
        return None
    header = bytes([first]) + raw[1:at] + number
    nonce = (int.from_bytes(keys.iv, "big") ^ int.from_bytes(number, "big")).to_bytes(12, "big")
    try:
        return keys.aead.decrypt(nonce, raw[at + size :], header)
    except InvalidTag:
        return None


@dataclass(slots=True)
class _Side:
    """The TLS messages that one side's Initial packets carry, and its close."""

    message: bytes = b""
    """As far as it has no gap."""
    alert: int | None = None
    tries: int = _MAX_TRIES
    frames: int = _MAX_FRAMES
    _pieces: dict[int, bytes] = field(default_factory=dict)

    def read(self, frames: bytes) -> None:
        known = len(self._pieces)
        self._read_frames(frames)
        if len(self._pieces) > known:
            found = bytearray()
            for offset in sorted(self._pieces):
                if offset > len(found):
                    break
                found += self._pieces[offset][len(found) - offset :]
            self.message = bytes(found)
            if 4 <= len(found) >= 4 + int.from_bytes(found[1:4], "big"):
                self.tries = min(self.tries, _TRIES_AFTER_HELLO)

    def _read_frames(self, frames: bytes) -> None:
        pos = 0
        while self.frames > 0:
            self.frames -= 1
            if frames[pos : pos + 1] == b"\0":
                pos = len(frames) - len(frames[pos:].lstrip(b"\0"))
            if pos >= len(frames):
                return
            kind = frames[pos]
            pos += 1
            if kind == _PING:
                continue
            if kind in (_ACK, _ACK_ECN):
                pos = self._after_ack(frames, pos, kind)
            elif kind == _CRYPTO:
                offset, pos = _number(frames, pos)
                length, pos = _number(frames, pos)
                piece = frames[pos : pos + length]
                if offset + length <= _MAX_CRYPTO and len(piece) > len(
                    self._pieces.get(offset, b"")
                ):
                    self._pieces[offset] = piece
                pos += length
            else:
                if kind == _CLOSE:
                    error, _ = _number(frames, pos)
                    if error >> 8 == _CRYPTO_ERROR >> 8:
                        self.alert = error & 0xFF
                return

    def _after_ack(self, frames: bytes, pos: int, kind: int) -> int:
        _, pos = _number(frames, pos)
        _, pos = _number(frames, pos)
        ranges, pos = _number(frames, pos)
        if ranges > self.frames:
            return len(frames)
        self.frames -= ranges
        for _ in range(2 * ranges + (1 if kind == _ACK else 4)):
            _, pos = _number(frames, pos)
        return pos


class Reader:
    """Reads a connection's first datagrams, as they come."""

    __slots__ = (
        "_answered", "_datagrams", "_handshakes", "_hello_us", "_ids", "_one_rtt_us", "_parsed",
        "_sides",
    )  # fmt: skip

    def __init__(self) -> None:
        self._sides = (_Side(), _Side())
        self._ids: list[bytes] = []  # the one whose keys fitted last comes first
        self._datagrams = 0
        self._answered = False
        self._hello_us: int | None = None
        self._handshakes: list[int] = []
        self._one_rtt_us: int | None = None
        self._parsed: tuple[int, int, ClientHello | None, ServerHello | None] = (0, 0, None, None)

    def add(self, datagram: Datagram) -> None:
        """Take in a datagram that begins with a long header, in order of time."""
        at_us, received, data = datagram
        self._answered = self._answered or received
        self._datagrams += 1
        if self._datagrams > _MAX_DATAGRAMS:
            return
        for packet in packets(data):
            if packet.kind == "initial":
                if not received:
                    if self._hello_us is None:
                        self._hello_us = at_us
                    if packet.dcid not in self._ids and len(self._ids) < _MAX_KEYS:
                        self._ids.append(packet.dcid)
                self._open(packet, received)
            elif received:
                continue
            elif packet.kind == "handshake":
                self._handshakes.append(at_us)
            elif packet.kind == "1rtt" and self._one_rtt_us is None:
                self._one_rtt_us = at_us

    def _open(self, packet: Packet, received: bool) -> None:
        side = self._sides[received]
        for dcid in self._ids:
            if side.tries <= 0:
                return
            side.tries -= 1
            frames = _decrypt(packet, _initial_keys(packet.version, dcid, received))
            if frames is not None:
                self._ids.remove(dcid)
                self._ids.insert(0, dcid)
                side.read(frames)
                return

    def seen(self, *, one_rtt_us: int | None) -> Quic:
        """What they said so far.

        Args:
            one_rtt_us: when the first datagram left that begins with a 1-RTT packet.
        """
        ours, theirs = self._sides
        sizes = len(ours.message), len(theirs.message)
        if sizes != self._parsed[:2]:
            self._parsed = (
                *sizes,
                parse_client_hello(_in_record(ours.message)),
                parse_server_hello(_in_record(theirs.message)),
            )
        if self._one_rtt_us is not None and (one_rtt_us is None or self._one_rtt_us < one_rtt_us):
            one_rtt_us = self._one_rtt_us
        done = [at for at in self._handshakes if one_rtt_us is not None and at <= one_rtt_us]
        return Quic(
            hello_us=self._hello_us,
            done_us=max(done, default=None),
            handshake_sent=bool(self._handshakes),
            answered=self._answered,
            client=self._parsed[2],
            server=self._parsed[3],
            alert=ours.alert if ours.alert is not None else theirs.alert,
            alert_received=ours.alert is None and theirs.alert is not None,
        )


def analyze(datagrams: Sequence[Datagram], *, one_rtt_us: int | None) -> Quic:
    """Find the hellos and the handshake's times.

    Args:
        datagrams: the first ones of both directions, those that begin with a long header.
        one_rtt_us: when the first datagram left that begins with a 1-RTT packet.
    """
    reader = Reader()
    for datagram in sorted(datagrams):
        reader.add(datagram)
    return reader.seen(one_rtt_us=one_rtt_us)


# The hello parsers read TLS records, which QUIC does without.
def _in_record(message: bytes) -> bytes:
    return b"\x16\x03\x03" + min(len(message), _MAX_CRYPTO).to_bytes(2, "big") + message
