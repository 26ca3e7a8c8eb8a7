"""The application's protocol from the first bytes each way of a plaintext connection.

Source: MQTT 3.1.1 section 3 and MQTT 5.0 section 3; HTTP is in conmon/http1.py.
"""

from __future__ import annotations

from functools import lru_cache

from .http1 import parse_heads as parse_http

__all__ = ["parse_heads"]

_CONNECT, _CONNACK = 0x10, 0x20
_MQTT_NAMES = (b"\x00\x04MQTT", b"\x00\x06MQIsdp")
_MQTT_VERSIONS = {3: "3.1", 4: "3.1.1", 5: "5"}


def parse_heads(tx_head: bytes, rx_head: bytes) -> dict[str, object] | None:
    """Tell the protocol, and the first answer's code, beyond doubt or not at all.

    Args:
        tx_head: first bytes the client sent; may be empty or cut anywhere.
        rx_head: first bytes the server sent, likewise.
    Returns:
        None where it is none that is known. Else ``protocol`` (``http`` or ``mqtt``), and what was
        seen of ``resp`` (HTTP's status; MQTT's CONNACK code, 0: accepted), ``method`` and
        ``version``.
    """
    found = _parsed(tx_head, rx_head)
    return dict(found) if found is not None else None


# The same request is sent, and answered alike, over and over.
@lru_cache(maxsize=512)
def _parsed(tx_head: bytes, rx_head: bytes) -> dict[str, object] | None:
    return _mqtt(tx_head, rx_head) or parse_http(tx_head, rx_head)


def _mqtt(tx_head: bytes, rx_head: bytes) -> dict[str, object] | None:
    if not tx_head or tx_head[0] != _CONNECT:
        return None
    length, at = _remaining_length(tx_head)
    if length is None:
        return None
    for name in _MQTT_NAMES:
        if tx_head[at : at + len(name)] == name and len(tx_head) > at + len(name):
            level = tx_head[at + len(name)] & 0x7F  # the top bit marks a bridge
            break
    else:
        return None
    if level not in _MQTT_VERSIONS:
        return None
    seen: dict[str, object] = {"protocol": "mqtt", "version": _MQTT_VERSIONS[level]}
    if not rx_head:
        return seen
    length, at = _remaining_length(rx_head)
    if rx_head[0] != _CONNACK or length is None or length < 2 or (level < 5 and length != 2):
        return None  # the answer is not MQTT
    if len(rx_head) > at + 1 and rx_head[at] in (0, 1):
        seen["resp"] = rx_head[at + 1]
    return seen


# Seven bits a byte, the lowest first, four bytes at most; and where the rest begins.
def _remaining_length(head: bytes) -> tuple[int | None, int]:
    value = 0
    for place in range(4):
        if len(head) <= place + 1:
            return None, 0
        byte = head[place + 1]
        value |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            return value, place + 2
    return None, 0
