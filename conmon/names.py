"""Names for the numbers that Linux and its C libraries give as reasons for a failure.

The tables are Linux's, written out: ``errno.errorcode`` and ``socket.EAI_*`` hold the numbers of
the system that reads a record, which need not be the one that wrote it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

__all__ = [
    "AI_NUMERICHOST",
    "COMM_BYTES",
    "DNS_NONE",
    "DNS_NO_RESULT",
    "DNS_OK",
    "DNS_SERVER_UNREACHABLE",
    "EAI_AGAIN",
    "EAI_CANCELED",
    "EAI_NAMES",
    "EAI_NODATA",
    "EAI_NONAME",
    "ERRNO_NAMES",
    "attempt_result",
    "dns_disposition",
    "eai_name",
    "errno_name",
    "fits_exe",
    "fold_host",
    "plain_address",
]

# Linux's generic numbers: x86, Arm, RISC-V, POWER, s390. MIPS, SPARC, Alpha and PA-RISC keep
# numbers of their own from 35 on, and are not served. Where two names share a number it has the
# kernel's own: EAGAIN, EDEADLK, EOPNOTSUPP.
_ERRNO_1_TO_34 = """
EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK
EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE
EROFS EMLINK EPIPE EDOM ERANGE
"""
_ERRNO_35_TO_133 = """
EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP - ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST
ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT - EBFONT ENOSTR ENODATA
ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG
EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE
EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT
EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET
ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED
EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT
ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED EOWNERDEAD
ENOTRECOVERABLE ERFKILL EHWPOISON
"""

ERRNO_NAMES: dict[int, str] = {
    number: name
    for number, name in enumerate((_ERRNO_1_TO_34 + _ERRNO_35_TO_133).split(), start=1)
    if name != "-"  # 41 and 58 are only second names of EAGAIN and EDEADLK
}
"""Linux errno number to name."""

EAI_NAMES: dict[int, str] = {
    -1: "EAI_BADFLAGS",
    -2: "EAI_NONAME",
    -3: "EAI_AGAIN",
    -4: "EAI_FAIL",
    -5: "EAI_NODATA",
    -6: "EAI_FAMILY",
    -7: "EAI_SOCKTYPE",
    -8: "EAI_SERVICE",
    -9: "EAI_ADDRFAMILY",
    -10: "EAI_MEMORY",
    -11: "EAI_SYSTEM",
    -12: "EAI_OVERFLOW",
    -100: "EAI_INPROGRESS",
    -101: "EAI_CANCELED",
    -102: "EAI_NOTCANCELED",
    -103: "EAI_ALLDONE",
    -104: "EAI_INTR",
    -105: "EAI_IDN_ENCODE",
}
"""What ``getaddrinfo()`` returns, to name: glibc's numbers, which musl and uClibc share."""

EAI_NONAME = -2
EAI_AGAIN = -3
EAI_NODATA = -5
EAI_CANCELED = -101
"""Here also: the caller gave up before there was an answer."""
AI_NUMERICHOST = 0x4
"""The ``ai_flags`` bit, in glibc and musl, that forbids a lookup."""

# lws_conmon's enum, the values of dns_disp.
DNS_NONE = 0
"""No lookup was attempted."""
DNS_OK = 1
"""The lookup gave addresses."""
DNS_SERVER_UNREACHABLE = 2
"""No server gave an answer."""
DNS_NO_RESULT = 3
"""There was an answer, or the lookup broke off on this side, and no address came of it."""

_DNS_DISPOSITION = {
    0: DNS_OK,
    EAI_CANCELED: DNS_SERVER_UNREACHABLE,  # it waited for an answer, and left
    # The call was turned down for its arguments, before anything was asked. Both libraries
    # resolve the service before the name, and encode the name before they ask for it.
    -1: DNS_NONE,  # BADFLAGS
    -6: DNS_NONE,  # FAMILY
    -7: DNS_NONE,  # SOCKTYPE
    -8: DNS_NONE,  # SERVICE
    -105: DNS_NONE,  # IDN_ENCODE
    # Every server timed out, refused the packet or said SERVFAIL: the code does not tell which.
    # In each case nobody who knows the name has answered, and another try may succeed.
    -3: DNS_SERVER_UNREACHABLE,  # AGAIN
    # A system call of the resolver failed, such as for want of a route or a socket: no server was
    # reached. errno would say more; the caller's is not seen.
    -11: DNS_SERVER_UNREACHABLE,  # SYSTEM
    # A server answered: no such name; no address; none of the family asked for; REFUSED, NOTIMP
    # or FORMERR.
    -2: DNS_NO_RESULT,  # NONAME
    -5: DNS_NO_RESULT,  # NODATA
    -9: DNS_NO_RESULT,  # ADDRFAMILY
    -4: DNS_NO_RESULT,  # FAIL
    # MEMORY, OVERFLOW, CANCELED, INTR and codes to come: begun, broken off on this side, and no
    # server to blame. They fall to DNS_NO_RESULT below.
}

_ATTEMPT_RESULT = {
    "ECONNREFUSED": "refused",
    "ETIMEDOUT": "timeout",
    "ENETUNREACH": "unreachable",
    "EHOSTUNREACH": "unreachable",
    "ENETDOWN": "unreachable",
    "EHOSTDOWN": "unreachable",
    "ENONET": "unreachable",
    "ECONNRESET": "reset",
    "ECONNABORTED": "abandoned",  # this side closed the socket while SYN_SENT
    "EACCES": "denied",  # a firewall or security module of this host
    "EPERM": "denied",
}


def plain_address(address: str) -> str:
    """Return an address as it is on the wire: IPv4 through an IPv6 socket is IPv4."""
    if address.startswith("::ffff:") and "." in address:
        return address[7:]
    return address


COMM_BYTES = 15
"""Of a process's name; the kernel cuts what is longer."""


@lru_cache(maxsize=256)
def fits_exe(pattern: str, exe: str | None) -> bool:
    """Whether the path of an executable is one that a pattern means.

    Args:
        pattern: as of a shell, where ``*`` is any text, slashes too; one without a slash means the
            file's name.
        exe: None where not known, which no pattern means.
    """
    if exe is None:
        return False
    return fnmatchcase(exe if "/" in pattern else exe.rpartition("/")[2], pattern)


def fold_host(host: str) -> str:
    """Return a host's name as DNS compares it: in lower case, without the last dot."""
    return host.lower().rstrip(".") or host


def errno_name(number: int) -> str:
    """Return the name of a Linux errno, or ``"ERRNO_4095"`` for a number without one."""
    return ERRNO_NAMES.get(number) or f"ERRNO_{number}"


def eai_name(code: int) -> str:
    """Return the name of what ``getaddrinfo()`` returned, or ``"EAI_77"`` for an unknown -77."""
    return EAI_NAMES.get(code) or f"EAI_{abs(code)}"


def dns_disposition(code: int, ai_flags: int = 0) -> int:
    """Say what became of a lookup: the record's ``dns_disp``.

    Args:
        code: what ``getaddrinfo()`` returned; 0 is success.
        ai_flags: of its hints. With AI_NUMERICHOST a program only asks whether the name is a
            literal address, so there was no lookup to succeed or fail.
    Returns:
        one of ``DNS_NONE``, ``DNS_OK``, ``DNS_SERVER_UNREACHABLE``, ``DNS_NO_RESULT``.
    """
    if ai_flags & AI_NUMERICHOST:
        return DNS_NONE
    return _DNS_DISPOSITION.get(code, DNS_NO_RESULT)


def attempt_result(error: str) -> str:
    """Return an attempt's ``result`` for the errno name it failed with; ``"failed"`` if other."""
    return _ATTEMPT_RESULT.get(error, "failed")
