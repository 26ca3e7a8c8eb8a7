"""ClientHello and ServerHello from their bytes on the wire.

Both parsers take what the kernel copied: the first bytes of one direction from a TLS record
header on, possibly cut. They read as far as the bytes are sound and never raise, since a
stranger chose them. Names that strangers chose come out as ASCII with everything else written
as ``\\xNN``; control characters are still in them and are the views' to escape.

Sources: RFC 8446 section 4.1 (TLS 1.3), RFC 5246 section 7.4.1 (TLS 1.2), RFC 6066 section 3
(server name), RFC 7301 (ALPN), RFC 8701 (GREASE).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, unpack_from

from conmon.ciphers import cipher_name, is_grease

__all__ = ["ClientHello", "ServerHello", "parse_client_hello", "parse_server_hello"]

_ALERT = 21
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_HELLO = 2
_RECORD_MAX = 16384 + 2048  # the most that any version lets a record hold
_NAME_MAX = 255  # a longer server name is no DNS name
_ALPN_MAX = 32  # protocols kept; real clients offer up to four

_EXT_SERVER_NAME = 0
_EXT_ALPN = 16
_EXT_SESSION_TICKET = 35
_EXT_PRE_SHARED_KEY = 41
_EXT_EARLY_DATA = 42
_EXT_SUPPORTED_VERSIONS = 43
_EXT_PSK_MODES = 45
_EXT_POST_HANDSHAKE_AUTH = 49

_TWO_SHORTS = Struct(">HH").unpack_from

_VERSION_NAMES = {
    0x0300: "SSLv3",
    0x0301: "TLSv1.0",
    0x0302: "TLSv1.1",
    0x0303: "TLSv1.2",
    0x0304: "TLSv1.3",
}

# SHA-256 of "HelloRetryRequest": the random that marks one (RFC 8446 section 4.1.3).
_HELLO_RETRY_RANDOM = bytes.fromhex(
    "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHello:
    """What a client offered.

    ``versions`` and ``ciphers`` are in the client's order, GREASE left out of ``versions`` and
    left in ``ciphers``. ``psk_identity_len`` is the length of the first ticket that was offered
    for resumption in TLS 1.3. ``truncated``: the message is longer than the bytes that were
    kept, so an absent extension may only be out of sight.
    """

    legacy_version: int
    versions: tuple[int, ...]
    session_id: bytes
    ciphers: tuple[int, ...]
    sni: str | None
    alpn: tuple[str, ...]
    session_ticket: bool
    psk_modes: bool
    psk_offered: bool
    psk_identity_len: int | None
    early_data: bool
    post_handshake_auth: bool = False
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerHello:
    """What a server chose.

    ``version`` is the negotiated one, e.g. ``"TLSv1.3"``; ``cipher`` the registry's name.
    ``alpn`` is seen up to TLS 1.2 only, later versions encrypt it. ``hello_retry``: this is a
    HelloRetryRequest, so the real ServerHello follows and ``psk_selected`` says nothing.
    """

    version: str
    version_number: int
    cipher: str
    cipher_number: int
    session_id: bytes
    psk_selected: bool
    alpn: str | None
    hello_retry: bool
    truncated: bool


def parse_client_hello(data: bytes) -> ClientHello | None:
    """Read a ClientHello from the first bytes a client sent.

    Args:
        data: from a TLS record header on; may be cut; the message may span records.
    Returns:
        None where the bytes are no ClientHello, or too few to tell anything of it.
    Source: RFC 8446 section 4.1.2.
    """
    message = _message(data, _CLIENT_HELLO)
    if message is None:
        return None
    body, truncated = message
    end = len(body)
    if end < 35 or body[34] > 32:
        return None
    pos = 35 + body[34]
    session_id = body[35:pos]

    ciphers: tuple[int, ...] = ()
    if pos + 2 <= end:
        length = body[pos] << 8 | body[pos + 1]
        pos += 2
        count = min(length, end - pos) >> 1
        ciphers = unpack_from(f">{count}H", body, pos)
        pos += length
        if pos < end:
            pos += 1 + body[pos]  # compression methods
        pos += 2  # the length of all extensions: the message's own end serves as well

    legacy_version = body[0] << 8 | body[1]
    versions: tuple[int, ...] = (legacy_version,)
    sni: str | None = None
    alpn: tuple[str, ...] = ()
    ticket = modes = psk = early = late_auth = False
    identity_len: int | None = None
    while pos + 4 <= end:
        kind, length = _TWO_SHORTS(body, pos)
        pos += 4
        after = pos + length
        if after > end:
            # Cut or malformed. That the extension is there still counts.
            if kind == _EXT_PRE_SHARED_KEY:
                psk, identity_len = True, _identity_len(body, pos, end)
            elif kind == _EXT_SESSION_TICKET:
                ticket = True
            break
        if kind == _EXT_SERVER_NAME:
            sni = _server_name(body, pos, after)
        elif kind == _EXT_SUPPORTED_VERSIONS:
            versions = _versions(body, pos, after) or versions
        elif kind == _EXT_ALPN:
            alpn = _protocols(body, pos, after)
        elif kind == _EXT_SESSION_TICKET:
            ticket = True
        elif kind == _EXT_PSK_MODES:
            modes = True
        elif kind == _EXT_EARLY_DATA:
            early = True
        elif kind == _EXT_POST_HANDSHAKE_AUTH:
            late_auth = True
        elif kind == _EXT_PRE_SHARED_KEY:
            psk, identity_len = True, _identity_len(body, pos, after)
        pos = after

    return ClientHello(
        legacy_version=legacy_version,
        versions=versions,
        session_id=session_id,
        ciphers=ciphers,
        sni=sni,
        alpn=alpn,
        session_ticket=ticket,
        psk_modes=modes,
        psk_offered=psk,
        psk_identity_len=identity_len,
        early_data=early,
        post_handshake_auth=late_auth,
        truncated=truncated,
    )


def parse_server_hello(data: bytes) -> ServerHello | None:
    """Read a ServerHello or HelloRetryRequest from the first bytes a server sent.

    Args:
        data: from a TLS record header on; may be cut; warning alerts before it are skipped.
    Returns:
        None where the bytes are no ServerHello, or are cut before the cipher suite.
    Source: RFC 8446 section 4.1.3.
    """
    while len(data) >= 7 and data[0] == _ALERT and data[3:5] == b"\0\2":
        data = data[7:]
    message = _message(data, _SERVER_HELLO)
    if message is None:
        return None
    body, truncated = message
    end = len(body)
    if end < 35 or body[34] > 32:
        return None
    pos = 35 + body[34]
    if pos + 2 > end:
        return None
    session_id = body[35:pos]
    cipher = body[pos] << 8 | body[pos + 1]
    pos += 5  # cipher suite, compression method, length of all extensions

    version = body[0] << 8 | body[1]
    psk = False
    alpn: str | None = None
    while pos + 4 <= end:
        kind, length = _TWO_SHORTS(body, pos)
        pos += 4
        after = pos + length
        if after > end:
            break
        if kind == _EXT_SUPPORTED_VERSIONS and length == 2:
            version = body[pos] << 8 | body[pos + 1]
        elif kind == _EXT_PRE_SHARED_KEY:
            psk = True
        elif kind == _EXT_ALPN:
            alpn = (_protocols(body, pos, after) or (None,))[0]
        pos = after

    return ServerHello(
        version=_VERSION_NAMES.get(version) or f"0x{version:04x}",
        version_number=version,
        cipher=cipher_name(cipher),
        cipher_number=cipher,
        session_id=session_id,
        psk_selected=psk,
        alpn=alpn,
        hello_retry=body[2:34] == _HELLO_RETRY_RANDOM,
        truncated=truncated,
    )


# The first handshake message's body and whether it is cut; None if it is not of this kind.
def _message(data: bytes, kind: int) -> tuple[bytes, bool] | None:
    size = len(data)
    if size < 9 or data[0] != _HANDSHAKE or data[1] != 3:
        return None
    record = data[3] << 8 | data[4]
    if record > _RECORD_MAX:
        return None
    if record >= 4:
        if data[5] != kind:
            return None
        length = data[6] << 16 | data[7] << 8 | data[8]
        if length + 4 <= record:  # the usual case: all of it in one record
            return data[9 : 9 + length], 9 + length > size

    payload = bytearray()
    pos = 0
    while pos + 5 <= size and data[pos] == _HANDSHAKE and data[pos + 1] == 3:
        record = data[pos + 3] << 8 | data[pos + 4]
        payload += data[pos + 5 : pos + 5 + record]
        pos += 5 + record
    if len(payload) < 4 or payload[0] != kind:
        return None
    length = payload[1] << 16 | payload[2] << 8 | payload[3]
    return bytes(payload[4 : 4 + length]), 4 + length > len(payload)


# The one DNS name of a server_name extension.
def _server_name(body: bytes, pos: int, end: int) -> str | None:
    if pos + 5 > end or body[pos + 2] != 0:  # 0 = host_name, the only type there is
        return None
    length = body[pos + 3] << 8 | body[pos + 4]
    if not 0 < length <= _NAME_MAX or pos + 5 + length > end:
        return None
    return body[pos + 5 : pos + 5 + length].decode("ascii", "backslashreplace")


def _versions(body: bytes, pos: int, end: int) -> tuple[int, ...]:
    if pos >= end:
        return ()
    count = min(body[pos], end - pos - 1) >> 1
    return tuple(v for v in unpack_from(f">{count}H", body, pos + 1) if not is_grease(v))


def _protocols(body: bytes, pos: int, end: int) -> tuple[str, ...]:
    names: list[str] = []
    pos += 2
    while pos < end and len(names) < _ALPN_MAX:
        length = body[pos]
        pos += 1
        if length == 0 or pos + length > end:
            break
        # A name of two bytes may be GREASE, as numbers are.
        if length != 2 or not is_grease(body[pos] << 8 | body[pos + 1]):
            names.append(body[pos : pos + length].decode("ascii", "backslashreplace"))
        pos += length
    return tuple(names)


# Length of the first identity in a client's pre_shared_key extension.
def _identity_len(body: bytes, pos: int, end: int) -> int | None:
    return body[pos + 2] << 8 | body[pos + 3] if pos + 4 <= end else None
