"""A path with a known round-trip time between two namespaces.

The kernel may lack netem, so two TUN devices are joined by a small process that hands each
packet on after a fixed time. Order is kept, nothing is lost.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import IO

from tests.lab.clock import be_punctual
from tests.lab.netns import Namespace

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
MTU = 1500


def _open_tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


class DelayLink:
    """Join ``near`` and ``far`` by a device ``device`` in each; ``delay_s`` is one way.

    Addresses: each side gets its own with the other as its peer. Further addresses of the
    far side are reached by routes through the device. ``notes`` takes a line for each SYN that
    came and each SYN-ACK that went (IPv4): which, the client's port, and CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        near: Namespace,
        far: Namespace,
        *,
        delay_s: float,
        near_addresses: tuple[str, str],
        far_addresses: tuple[str, str],
        device: str = "wan0",
        notes: IO[bytes] | None = None,
    ) -> None:
        self.delay_s = delay_s
        fds = [space.call(lambda: _open_tun(device)) for space in (near, far)]
        try:
            for space, own, peer in (
                (near, near_addresses, far_addresses),
                (far, far_addresses, near_addresses),
            ):
                space.ip("link", "set", device, "mtu", str(MTU), "up")
                for mine, other in zip(own, peer, strict=True):
                    nodad = ["nodad"] if ":" in mine else []
                    space.ip("addr", "add", mine, "peer", other, "dev", device, *nodad)
            # A process of its own: it must not wait for the tester's interpreter lock.
            self._relay = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.lab.link"),
                    *(str(fds[0]), str(fds[1]), str(delay_s)),
                ],
                pass_fds=fds,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL if notes is None else notes,
                cwd=Path(__file__).resolve().parents[2],
            )
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """End the relay; the devices go with it."""
        assert self._relay.stdin is not None
        self._relay.stdin.close()
        self._relay.wait(timeout=5)


def relay(first: int, second: int, delay_s: float) -> None:
    """Pass packets both ways, each ``delay_s`` after it came, until stdin is closed."""
    other = {first: second, second: first}
    waiting: deque[tuple[float, int, bytes]] = deque()  # one delay, so arrival order is due order
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable = select.select([first, second, 0], [], [], timeout)[0]
        now = time.monotonic()
        for fd in readable:
            if fd == 0:
                return
            packet = os.read(fd, 65536)
            waiting.append((now + delay_s, other[fd], packet))
            if fd == first:
                note("SYN", packet)
        while waiting and waiting[0][0] <= time.monotonic():
            _, fd, packet = waiting.popleft()
            os.write(fd, packet)
            if fd == first:
                note("SYN-ACK", packet)


def note(kind: str, packet: bytes) -> None:
    """Write down that such a packet passed just now, if it is one."""
    if packet[0] != 0x45 or packet[9] != socket.IPPROTO_TCP or len(packet) < 40:
        return
    flags, ports = packet[33] & 0x12, (packet[20:22], packet[22:24])
    if flags == (0x02 if kind == "SYN" else 0x12):
        port = int.from_bytes(ports[kind == "SYN-ACK"], "big")
        print(kind, port, time.monotonic_ns(), flush=True)


if __name__ == "__main__":
    be_punctual()
    relay(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
