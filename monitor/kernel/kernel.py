"""The kernel side as one object: loaded, attached, read, let go."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from monitor.decode import CONN_BYTES, COUNTERS
from monitor.errors import LoadError, MonitorError
from monitor.kernel import bpf_syscall
from monitor.kernel.attach import Attached, attach
from monitor.kernel.identities import find_cgroup2
from monitor.kernel.live import Live, LiveFigures
from monitor.kernel.loader import Loaded, load
from monitor.kernel.losses import Losses
from monitor.kernel.programs import AGAIN, CGROUP_HOOKS, PROBED_FUNCTIONS, TRACEPOINTS
from monitor.kernel.ring import Ring, Shares

__all__ = ["RING_BYTES", "Kernel"]

# Room for what comes while this process does not get a CPU, or is stopped.
RING_BYTES: Final = 16 << 20
_KEY: Final = struct.Struct("=Q")  # of conn_by_sk: the address of struct sock
_FORGET: Final = struct.Struct("=QQ")  # arguments of conn_forget: the key, connect_ns
SK_AT: Final = 72  # offsetof(struct conn_event, sk)
COOKIE_AT: Final = 80  # ... cookie)
LOST_COUNTERS: Final = (
    "lost_conn", "lost_lookup", "lost_hello", "lost_exec", "lost_exit", "lost_dns",
    "lost_plain", "conn_full", "lookup_full",
)  # fmt: skip
MISSED: Final = "missed_runs"
"""... and runs of programs that the kernel skipped."""
_SHARES: Final = 5  # SHARE_MAX, bpf/event.h
FILLABLE_MAPS: Final = (
    "conn_by_sk", "lookup_by_thread", "handshake_by_thread", "handshake_by_object",
)  # fmt: skip
_CAPABILITIES: Final = {"CAP_BPF": 39, "CAP_PERFMON": 38, "CAP_NET_ADMIN": 12}
_CAP_SYS_ADMIN: Final = 21


def check_permitted() -> None:
    """Say what is missing before anything costly is tried.

    Raises:
        LoadError: no rights, no BPF, or no BTF.
    """
    effective = _effective_capabilities()
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if effective >> _CAP_SYS_ADMIN & 1 and effective >> _CAPABILITIES["CAP_NET_ADMIN"] & 1:
        missing = []  # before 5.8 CAP_SYS_ADMIN was all three
    if missing:
        raise LoadError(
            f"cannot load programs into the kernel: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; run conmond as root (sudo conmond)"
        )
    try:
        # a map of one element, gone at once
        attributes = struct.pack("=IIIII", 2, 4, 4, 1, 0)
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        os.close(bpf_syscall.bpf(0, buffer))
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            raise LoadError(
                "cannot load programs into the kernel: it was built without CONFIG_BPF_SYSCALL, "
                "which conmond needs"
            ) from exc
        raise LoadError(
            f"cannot load programs into the kernel: bpf() says {exc.strerror}; in a container "
            "it takes --privileged, and a seccomp filter may forbid it"
        ) from exc
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        raise LoadError(
            "cannot read /sys/kernel/btf/vmlinux: this kernel was built without "
            "CONFIG_DEBUG_INFO_BTF, which conmond needs"
        )


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


@dataclass(slots=True)
class Kernel:
    """What is in the kernel on our behalf."""

    loaded: Loaded
    attached: Attached
    ring: Ring
    losses: Losses
    cgroup: str | None
    _conns: bpf_syscall.MapBatch
    _conn: bpf_syscall.ElementRead
    _cpus: int
    _found: bpf_syscall.MapBatch
    live_failed: str | None = None
    """Why sockets cannot be asked for their figures, once that is known."""
    _live: Live | None = None
    _finding: threading.Lock = field(default_factory=threading.Lock)
    _forget: tuple[bpf_syscall.ProgramRun, ctypes.Array[ctypes.c_char]] | None = None

    @classmethod
    def open(cls, defines: dict[str, int] | None = None) -> Kernel:
        """Compile, load and attach.

        Raises:
            MonitorError: one sentence that says what is missing.
        """
        check_permitted()
        page = os.sysconf("SC_PAGE_SIZE")
        ring_pages = (defines or {}).get("RING_PAGES", RING_BYTES // page)
        loaded = load({"RING_PAGES": ring_pages, **(defines or {})})
        with ExitStack() as opened:  # closed again where something is refused
            opened.callback(loaded.close)
            cgroup = find_cgroup2()
            shares = Shares(loaded.maps["ring_shares"], _SHARES)
            opened.callback(shares.close)
            ring = Ring(loaded.maps["events"], ring_pages * page, shares)
            opened.callback(ring.close)
            losses = Losses(loaded.maps["losses"])
            opened.callback(losses.close)
            conns = bpf_syscall.MapBatch(loaded.maps["conn_by_sk"], 8, CONN_BYTES)
            found = bpf_syscall.MapBatch(loaded.maps["conn_by_sk"], 8, CONN_BYTES)
            conn = bpf_syscall.ElementRead(loaded.maps["conn_by_sk"], 8, CONN_BYTES)
            cpus = _possible_cpus()
            attached = attach(loaded, cgroup)
            opened.pop_all()
        return cls(loaded, attached, ring, losses, cgroup, conns, conn, cpus, found)

    def connections(self) -> Iterator[memoryview]:
        """Yield every entry of conn_by_sk, a struct conn_event each."""
        return self._conns.read()

    def connection_batches(self) -> Iterator[memoryview]:
        """Yield every entry of conn_by_sk, many side by side, each of CONN_BYTES."""
        return self._conns.read_batches()

    def live_figures(self, sockets: Sequence[tuple[int, int]]) -> dict[int, LiveFigures]:
        """What open sockets say of themselves, by address; of those that are gone nothing.

        Args:
            sockets: address of struct sock, and SO_COOKIE, of each.
        Returns:
            Nothing at all where this kernel cannot tell: ``live_failed`` then says why.
        """
        return dict(self._read_live(sockets, Live.read))

    def live_bytes(self, sockets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Payload bytes sent and received of each of the same sockets, in their order; empty
        where this kernel cannot tell.
        """
        return list(self._read_live(sockets, Live.read_bytes))

    def gone(self, connections: Sequence[tuple[int, int]]) -> list[bool]:
        """Whether the sockets of connections are certainly gone, in their order; empty where this
        kernel cannot tell.

        Args:
            connections: sk and cookie of each, as in its entry of conn_by_sk.
        """
        return list(self._read_live(connections, Live.gone))

    def _read_live(self, sockets: Sequence[tuple[int, int]], how: Callable[..., Any]) -> Any:
        if self.live_failed is not None:
            return ()
        try:
            if self._live is None:
                self._live = self._open_live()
            return how(self._live, sockets)
        except MonitorError as exc:
            self.live_failed = f"{exc}; not seen: the TCP figures of open connections"
            return ()

    def _open_live(self) -> Live:
        if "live_read" in self.loaded.failed:
            raise LoadError(self.loaded.failed["live_read"])
        slots = self.loaded.specs["live_by_slot"].max_entries
        return Live(self.loaded.programs["live_read"], self.loaded.maps["live_by_slot"], slots)

    def connection(self, sk: int) -> bytes | None:
        """Return the entry of conn_by_sk with this key; None where there is none."""
        return self._conn(_KEY.pack(sk))

    def find_connection(self, cookie: int) -> int | None:
        """Return the key in conn_by_sk of this socket cookie; None where there is none.

        May be called from any thread, whatever else is done meanwhile.
        """
        with self._finding:
            for batch in self._found.read_batches():
                numbers = batch.cast("Q")
                cookies = numbers[COOKIE_AT // 8 :: CONN_BYTES // 8].tolist()
                if cookie in cookies:
                    return numbers[cookies.index(cookie) * (CONN_BYTES // 8) + SK_AT // 8]
        return None

    def forget_connection(self, sk: int, connect_ns: int) -> bool:
        """Delete an entry of conn_by_sk; False if the kernel had done so, or if its key is another
        connection's by now.
        """
        if "conn_forget" not in self.loaded.programs:
            return bpf_syscall.delete_element(self.loaded.maps["conn_by_sk"], _KEY.pack(sk))
        if self._forget is None:
            context = ctypes.create_string_buffer(_FORGET.size)
            program = self.loaded.programs["conn_forget"]
            self._forget = bpf_syscall.ProgramRun(program, context), context
        run, context = self._forget
        _FORGET.pack_into(context, 0, sk, connect_ns)
        run()
        return run.returned == 1

    def probe_programs(self) -> dict[str, int]:
        """Descriptors of the programs for functions in libraries, by name."""
        programs = self.loaded.programs
        names = {name for pair in PROBED_FUNCTIONS.values() for name in pair}
        return {name: programs[name] for name in names if name in programs}

    def forget_calls(self) -> None:
        """Empty the map of lookups under way: nobody saw how they ended."""
        lookups = self.loaded.maps["lookup_by_thread"]
        spec = self.loaded.specs["lookup_by_thread"]
        for key in bpf_syscall.keys(lookups, spec.key_size, spec.max_entries):
            bpf_syscall.delete_element(lookups, key)

    def counters(self) -> dict[str, int]:
        """What the kernel side counted since it was loaded, by the names of enum counter."""
        totals = {}
        for index, name in enumerate(COUNTERS):
            raw = bpf_syscall.lookup_element(
                self.loaded.maps["counters"], struct.pack("=I", index), 8 * self._cpus
            )
            totals[name] = sum(struct.unpack(f"={self._cpus}Q", raw)) if raw else 0
        for name, (number, _) in self.losses.read().items():
            totals[name] += number
        return totals

    def lost(self) -> dict[str, int]:
        """What the kernel side could not deliver or keep, since it was loaded."""
        counted = self.losses.read()
        return {name: counted[name][0] for name in LOST_COUNTERS} | {MISSED: self.missed()}

    def missed(self) -> int:
        """Runs of programs that the kernel skipped and that nothing made up for."""
        made_up = {TRACEPOINTS[tracepoint] for tracepoint, again in AGAIN.items()
                   if again in self.attached.descriptors}  # fmt: skip
        return sum(
            bpf_syscall.missed_runs(descriptor)
            for name, descriptor in self.loaded.programs.items()
            if name not in made_up
        )

    def map_fill(self) -> dict[str, tuple[int, int]]:
        """Entries now and at most, of each map that can fill up. The ring counts in bytes."""
        fill = {}
        for name in FILLABLE_MAPS:
            spec = self.loaded.specs[name]
            batch = bpf_syscall.MapBatch(self.loaded.maps[name], spec.key_size, spec.value_size)
            fill[name] = (batch.count(), spec.max_entries)
        fill["events"] = (self.ring.waiting, self.ring.size)
        return fill

    def hooks(self) -> Iterator[tuple[str, str, str | None]]:
        """Yield each hook: its name, its kind, and why it is not attached (None: it is)."""
        for names, kind in ((TRACEPOINTS, "raw_tracepoint"), (CGROUP_HOOKS, "cgroup")):
            for name in names:
                attached = name in self.attached.descriptors
                yield name, kind, None if attached else self.attached.failed.get(name, "not tried")
        for name in AGAIN.values():
            attached = name in self.attached.descriptors
            why = None if attached else self.attached.failed.get(name, "not tried")
            yield name, "raw_tracepoint", why

    def close(self) -> None:
        """Detach and unload."""
        if self._live is not None:
            self._live.close()
        self.attached.close()
        self.ring.close()
        self.losses.close()
        self.loaded.close()


def _possible_cpus() -> int:
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        text = file.read().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1
