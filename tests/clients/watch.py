"""Run a program in the lab and collect exactly the records that it gave."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.lab import world
from tests.lab.daemon import Daemon, Record, of_pids
from tests.lab.netns import Namespace
from tests.lab.programs import Done, Program, run
from tests.lab.servers import Behaviour
from tests.lab.world import Lab, Site

DNS_PORT = 53


@dataclass(frozen=True)
class Seen:
    """A run, its records (without those of DNS over TCP), and the wall clock around it."""

    done: Done
    records: list[Record]
    began: float
    ended: float

    @property
    def record(self) -> Record:
        """The one record; there must be exactly one."""
        assert len(self.records) == 1, self.records
        return self.records[0]


class Watch:
    """The daemon's view of what runs in a namespace."""

    def __init__(self, lab: Lab, daemon: Daemon) -> None:
        self.lab = lab
        self.daemon = daemon
        self._fence: Site | None = None

    def settle(self) -> None:
        """Return when all that has ended by now has been reported.

        A connection of our own goes the same way as all others, after them.
        """
        if self._fence is None:
            self._fence = self.lab.serve(Behaviour(), world.NEAR4)
        port = self._fence.port

        def connect() -> int:
            with socket.create_connection((world.NEAR4, port)) as sock:
                return int(sock.getsockname()[1])

        lport = self.lab.here.call(connect)
        mine = of_pids([os.getpid()])
        self.daemon.wait_for(
            lambda record: mine(record) and (record["lport"], record["rport"]) == (lport, port)
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        count: int = 1,
        space: Namespace | None = None,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 20.0,
        wanted: Callable[[Record], bool] | None = None,
    ) -> Seen:
        """Run ``argv`` in ``space`` to its end and wait for its ``count`` records.

        More than ``count`` are returned if more come before the daemon has settled. ``wanted``
        tells the program's records where its pid does not.
        """
        space = space or self.lab.here
        earlier = {id(record) for record in self.daemon.records()}
        began = time.time()
        done = run(space, argv, stdin=stdin, env=env, timeout_s=timeout_s)
        ended = time.time()
        ours = wanted or of_pids([done.pid])

        def new(record: Record) -> bool:
            return (
                ours(record)
                and record["netns"] == space.inode
                and record["rport"] != DNS_PORT
                and id(record) not in earlier
            )

        self.daemon.wait_for(new, count)
        self.settle()
        return Seen(done, self.daemon.records(new), began, ended)

    def program(
        self, program: Program, host: str, port: int, tls: str | None = None, *, count: int = 1
    ) -> Seen:
        """One request of ``program``."""
        return self.run(
            program.argv(host, port, tls),
            stdin=program.stdin(host),
            env={"NODE_EXTRA_CA_CERTS": program.ca},
            count=count,
        )
