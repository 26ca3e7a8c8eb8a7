"""Why a lookup, a connect or a handshake failed, in the record's words, on every system.

Resolvers and sockets number their errors differently on Linux, macOS and Windows; this is the one
place that knows.
"""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from typing import NamedTuple

from .names import DNS_NO_RESULT, DNS_SERVER_UNREACHABLE, EAI_NAMES, attempt_result, dns_disposition

__all__ = ["IN_PROGRESS", "Failure", "connect_failure", "lookup_failure", "tls_failure"]

_MACOS_EAI = {
    1: "EAI_ADDRFAMILY", 2: "EAI_AGAIN", 3: "EAI_BADFLAGS", 4: "EAI_FAIL", 5: "EAI_FAMILY",
    6: "EAI_MEMORY", 7: "EAI_NODATA", 8: "EAI_NONAME", 9: "EAI_SERVICE", 10: "EAI_SOCKTYPE",
    11: "EAI_SYSTEM", 14: "EAI_OVERFLOW",
}  # fmt: skip
_WINDOWS_EAI = {
    8: "EAI_MEMORY", 10022: "EAI_BADFLAGS", 10044: "EAI_SOCKTYPE", 10047: "EAI_FAMILY",
    10109: "EAI_SERVICE", 11001: "EAI_NONAME", 11002: "EAI_AGAIN", 11003: "EAI_FAIL",
    11004: "EAI_NODATA",
}  # fmt: skip
_CODES = {name: code for code, name in EAI_NAMES.items()}

IN_PROGRESS = frozenset(
    code
    for code in (
        errno.EINPROGRESS,
        errno.EWOULDBLOCK,
        errno.EAGAIN,
        errno.EALREADY,
        getattr(errno, "WSAEWOULDBLOCK", None),
        getattr(errno, "WSAEINPROGRESS", None),
    )
    if code is not None
)
"""What a connect() that does not wait says, on any system."""

# Of winerror.h: what connect() and what follows it may give.
_WINDOWS_ERRNO = {
    10013: "EACCES", 10036: "EINPROGRESS", 10048: "EADDRINUSE", 10049: "EADDRNOTAVAIL",
    10050: "ENETDOWN", 10051: "ENETUNREACH", 10052: "ENETRESET", 10053: "ECONNABORTED",
    10054: "ECONNRESET", 10055: "ENOBUFS", 10060: "ETIMEDOUT", 10061: "ECONNREFUSED",
    10064: "EHOSTDOWN", 10065: "EHOSTUNREACH",
}  # fmt: skip

# The longest first: OpenSSL names alerts after the version that brought them.
_ALERT_PREFIXES = ("TLSV13_ALERT_", "TLSV1_ALERT_", "SSLV3_ALERT_", "TLSV1_", "TLSV13_")
_ALERT_WORDS = frozenset((
    "close_notify", "unexpected_message", "bad_record_mac", "decryption_failed",
    "record_overflow", "decompression_failure", "handshake_failure", "no_certificate",
    "bad_certificate", "unsupported_certificate", "certificate_revoked", "certificate_expired",
    "certificate_unknown", "illegal_parameter", "unknown_ca", "access_denied", "decode_error",
    "decrypt_error", "protocol_version", "insufficient_security", "internal_error",
    "inappropriate_fallback", "user_canceled", "no_renegotiation", "missing_extension",
    "unsupported_extension", "certificate_unobtainable", "unrecognized_name",
    "bad_certificate_status_response", "bad_certificate_hash_value", "unknown_psk_identity",
    "certificate_required", "no_application_protocol",
))  # fmt: skip


class Failure(NamedTuple):
    """What went wrong."""

    result: str
    """The ``result`` of an attempt or a handshake."""
    error: str | None
    """The record's ``error``: errno or EAI name."""
    alert: str | None = None


def lookup_failure(exc: OSError, platform: str = sys.platform) -> tuple[str, int]:
    """Return what a resolver's error is called, and the record's ``dns_disp``.

    Args:
        exc: of ``getaddrinfo()``; anything but a ``socket.gaierror`` (a time-out) means that no
            answer came.
        platform: as ``sys.platform``, for tests.
    """
    if isinstance(exc, UnicodeError):
        return "EAI_IDN_ENCODE", dns_disposition(_CODES["EAI_IDN_ENCODE"])
    if not isinstance(exc, socket.gaierror) or exc.errno is None:
        return _errno_name(exc, platform) or "ETIMEDOUT", DNS_SERVER_UNREACHABLE
    if platform == "darwin":
        name = _MACOS_EAI.get(exc.errno)
    elif platform == "win32":
        name = _WINDOWS_EAI.get(exc.errno)
    else:
        name = EAI_NAMES.get(exc.errno)
    if name is None:
        return f"EAI_{abs(exc.errno)}", DNS_NO_RESULT
    return name, dns_disposition(_CODES[name])


def connect_failure(exc: BaseException, platform: str = sys.platform) -> Failure:
    """Return why an attempt failed."""
    error = _errno_name(exc, platform)
    if error is None:
        return Failure("failed", None)
    return Failure(attempt_result(error), error)


def tls_failure(exc: BaseException, platform: str = sys.platform) -> Failure:
    """Return why a handshake failed."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return Failure("rejected", "EPROTO")
    if isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return Failure("closed", "EPROTO")
    if isinstance(exc, ssl.SSLError):
        reason = exc.reason or ""
        for prefix in _ALERT_PREFIXES:
            word = reason[len(prefix) :].lower()
            if reason.startswith(prefix) and word in _ALERT_WORDS:
                return Failure("alert", "EPROTO", word)
        if "timed out" in str(exc):
            return Failure("timeout", "ETIMEDOUT")
        return Failure("failed", "EPROTO")
    error = _errno_name(exc, platform)
    if error == "ECONNRESET" or isinstance(exc, ConnectionResetError):
        return Failure("reset", "ECONNRESET")
    if error == "ETIMEDOUT":
        return Failure("timeout", "ETIMEDOUT")
    return Failure("failed", error)


def _errno_name(exc: BaseException, platform: str) -> str | None:
    number = exc.errno if isinstance(exc, OSError) else None
    if number is None:
        return "ETIMEDOUT" if isinstance(exc, TimeoutError) else None
    if platform == "win32" and number in _WINDOWS_ERRNO:
        return _WINDOWS_ERRNO[number]
    name = errno.errorcode.get(number)
    return name[3:] if name is not None and name.startswith("WSAE") else name
