"""How long a program waited in vain."""

from __future__ import annotations

from .record import Record

__all__ = ["waited_us"]


def waited_us(record: Record) -> int | None:
    """Return how long a failed record's program waited for what did not come.

    That is the longest of its attempts where none connected; else what its phases leave of its
    duration: for the handshake's end, or for an answer.

    Returns:
        None of a record that has not failed, and where it is not known.
    """
    if record.state != "failed":
        return None
    if record.peer is None and record.attempts:
        return max((one.us for one in record.attempts if one.us is not None), default=None)
    if record.duration_us is None:
        return None
    phases = (record.sockconn_us, record.tls_us, record.txn_resp_us, record.greeting_us)
    return max(0, record.duration_us - sum(us for us in phases if us is not None))
