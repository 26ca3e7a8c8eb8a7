"""TLS alert descriptions by number, under the names the RFCs give them.

Sources: IANA "TLS Alerts" registry; RFC 8446 section 6, RFC 5246 section 7.2 for those that
TLS 1.3 dropped.
"""

from __future__ import annotations

__all__ = ["ALERT_NAMES", "CERTIFICATE_ALERTS", "alert_name"]

ALERT_NAMES: dict[int, str] = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    21: "decryption_failed",
    22: "record_overflow",
    30: "decompression_failure",
    40: "handshake_failure",
    41: "no_certificate",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    52: "too_many_cids_requested",
    60: "export_restriction",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    100: "no_renegotiation",
    109: "missing_extension",
    110: "unsupported_extension",
    111: "certificate_unobtainable",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    114: "bad_certificate_hash_value",
    115: "unknown_psk_identity",
    116: "certificate_required",
    117: "general_error",
    120: "no_application_protocol",
    121: "ech_required",
}

CERTIFICATE_ALERTS = frozenset({41, 42, 43, 44, 45, 46, 48, 49, 111, 113, 114})
"""What a client answers a certificate with that it does not accept."""


def alert_name(number: int) -> str:
    """Return the RFC's name of an alert description, or ``"alert_77"`` for an unknown one."""
    return ALERT_NAMES.get(number) or f"alert_{number}"
