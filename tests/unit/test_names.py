"""conmon.names: numbers of Linux and its C libraries."""

from __future__ import annotations

import errno
import platform
import socket
import sys

import pytest

from conmon.names import (
    AI_NUMERICHOST,
    DNS_NO_RESULT,
    DNS_NONE,
    DNS_OK,
    DNS_SERVER_UNREACHABLE,
    EAI_NAMES,
    ERRNO_NAMES,
    attempt_result,
    dns_disposition,
    eai_name,
    errno_name,
)

here_is_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine().startswith(("mips", "sparc", "alpha", "parisc")),
    reason="compares with a Linux that numbers as x86 and Arm do",
)


@here_is_linux
def test_errno_names_are_those_of_this_linux():
    assert {
        name: getattr(errno, name) for name in ERRNO_NAMES.values() if hasattr(errno, name)
    } == {name: number for number, name in ERRNO_NAMES.items() if hasattr(errno, name)}
    assert set(ERRNO_NAMES) >= set(errno.errorcode)


@here_is_linux
def test_eai_names_are_those_of_this_libc():
    known = {name: getattr(socket, name) for name in EAI_NAMES.values() if hasattr(socket, name)}
    assert known == {name: code for code, name in EAI_NAMES.items() if name in known}
    assert "EAI_NONAME" in known
    assert AI_NUMERICHOST == socket.AI_NUMERICHOST


# Written out, so that they hold on any system.
@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "EPERM"),
        (11, "EAGAIN"),
        (13, "EACCES"),
        (32, "EPIPE"),
        (34, "ERANGE"),
        (35, "EDEADLK"),
        (42, "ENOMSG"),
        (59, "EBFONT"),
        (71, "EPROTO"),
        (95, "EOPNOTSUPP"),
        (99, "EADDRNOTAVAIL"),
        (101, "ENETUNREACH"),
        (104, "ECONNRESET"),
        (110, "ETIMEDOUT"),
        (111, "ECONNREFUSED"),
        (113, "EHOSTUNREACH"),
        (133, "EHWPOISON"),
        (41, "ERRNO_41"),
        (524, "ERRNO_524"),
    ],
)
def test_errno_name(number, name):
    assert errno_name(number) == name


def test_eai_name():
    assert eai_name(-2) == "EAI_NONAME"
    assert eai_name(-3) == "EAI_AGAIN"
    assert eai_name(-77) == "EAI_77"


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        (DNS_NONE, ["BADFLAGS", "FAMILY", "SOCKTYPE", "SERVICE", "IDN_ENCODE"]),
        (DNS_SERVER_UNREACHABLE, ["AGAIN", "SYSTEM", "CANCELED"]),
        (DNS_NO_RESULT, ["NONAME", "NODATA", "ADDRFAMILY", "FAIL"]),
        (
            DNS_NO_RESULT,
            ["MEMORY", "OVERFLOW", "INPROGRESS", "NOTCANCELED", "ALLDONE", "INTR"],
        ),
    ],
)
def test_disposition_of_every_failure(expected, names):
    codes = {name: code for code, name in EAI_NAMES.items()}
    assert {name: dns_disposition(codes[f"EAI_{name}"]) for name in names} == dict.fromkeys(
        names, expected
    )


def test_disposition_of_the_rest():
    assert dns_disposition(0) == DNS_OK
    assert dns_disposition(-77) == DNS_NO_RESULT
    assert [DNS_NONE, DNS_OK, DNS_SERVER_UNREACHABLE, DNS_NO_RESULT] == [0, 1, 2, 3]  # lws's enum


def test_asking_whether_a_name_is_a_literal_is_no_lookup():
    assert dns_disposition(0, AI_NUMERICHOST) == DNS_NONE
    assert dns_disposition(-2, AI_NUMERICHOST | 0x20) == DNS_NONE
    assert dns_disposition(-2, 0x20) == DNS_NO_RESULT


def test_attempt_result():
    results = {
        "ECONNREFUSED": "refused",
        "ETIMEDOUT": "timeout",
        "EHOSTUNREACH": "unreachable",
        "ENETUNREACH": "unreachable",
        "ECONNRESET": "reset",
        "ECONNABORTED": "abandoned",
        "EPERM": "denied",
        "EADDRNOTAVAIL": "failed",
        "ERRNO_524": "failed",
    }
    assert {name: attempt_result(name) for name in results} == results
