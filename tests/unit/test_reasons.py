"""One table for the errors of three systems."""

from __future__ import annotations

import socket
import ssl

import pytest

from conmon.names import DNS_NO_RESULT, DNS_NONE, DNS_SERVER_UNREACHABLE
from conmon.reasons import Failure, connect_failure, lookup_failure, tls_failure


@pytest.mark.parametrize(
    ("platform", "code", "name", "disposition"),
    [
        ("linux", -2, "EAI_NONAME", DNS_NO_RESULT),
        ("linux", -3, "EAI_AGAIN", DNS_SERVER_UNREACHABLE),
        ("linux", -8, "EAI_SERVICE", DNS_NONE),
        ("linux", -77, "EAI_77", DNS_NO_RESULT),
        ("darwin", 8, "EAI_NONAME", DNS_NO_RESULT),
        ("darwin", 2, "EAI_AGAIN", DNS_SERVER_UNREACHABLE),
        ("darwin", 7, "EAI_NODATA", DNS_NO_RESULT),
        ("win32", 11001, "EAI_NONAME", DNS_NO_RESULT),
        ("win32", 11002, "EAI_AGAIN", DNS_SERVER_UNREACHABLE),
        ("win32", 11003, "EAI_FAIL", DNS_NO_RESULT),
        ("win32", 11004, "EAI_NODATA", DNS_NO_RESULT),
        ("win32", 10109, "EAI_SERVICE", DNS_NONE),
    ],
)
def test_resolvers_number_alike_what_is_alike(platform, code, name, disposition):
    assert lookup_failure(socket.gaierror(code, "x"), platform) == (name, disposition)


def test_a_lookup_that_never_came_back():
    assert lookup_failure(TimeoutError(), "linux") == ("ETIMEDOUT", DNS_SERVER_UNREACHABLE)
    error = UnicodeError("label too long")
    assert lookup_failure(error, "linux") == ("EAI_IDN_ENCODE", DNS_NONE)


@pytest.mark.parametrize(
    ("platform", "exc", "failure"),
    [
        ("linux", OSError(111, "x"), Failure("refused", "ECONNREFUSED")),
        ("linux", OSError(113, "x"), Failure("unreachable", "EHOSTUNREACH")),
        ("win32", OSError(10061, "x"), Failure("refused", "ECONNREFUSED")),
        ("win32", OSError(10060, "x"), Failure("timeout", "ETIMEDOUT")),
        ("win32", OSError(10065, "x"), Failure("unreachable", "EHOSTUNREACH")),
        ("linux", TimeoutError("timed out"), Failure("timeout", "ETIMEDOUT")),
        ("linux", ValueError("x"), Failure("failed", None)),
    ],
)
def test_connect_failures(platform, exc, failure):
    assert connect_failure(exc, platform) == failure


def ssl_error(reason):
    exc = ssl.SSLError(1, reason)
    exc.reason = reason
    return exc


@pytest.mark.parametrize(
    ("exc", "failure"),
    [
        (ssl_error("SSLV3_ALERT_HANDSHAKE_FAILURE"), ("alert", "EPROTO", "handshake_failure")),
        (ssl_error("TLSV1_ALERT_PROTOCOL_VERSION"), ("alert", "EPROTO", "protocol_version")),
        (
            ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
            ("alert", "EPROTO", "certificate_required"),
        ),
        (ssl_error("TLSV1_UNRECOGNIZED_NAME"), ("alert", "EPROTO", "unrecognized_name")),
        (ssl_error("WRONG_VERSION_NUMBER"), ("failed", "EPROTO", None)),
        (ssl.SSLCertVerificationError(1, "x"), ("rejected", "EPROTO", None)),
        (ssl.SSLEOFError(8, "x"), ("closed", "EPROTO", None)),
        (ConnectionResetError(104, "x"), ("reset", "ECONNRESET", None)),
        (TimeoutError("x"), ("timeout", "ETIMEDOUT", None)),
    ],
)
def test_handshake_failures(exc, failure):
    assert tuple(tls_failure(exc, "linux")) == failure
