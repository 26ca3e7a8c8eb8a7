"""The lab put together: where everything stands and what it is called.

::

    here                                            there
    lo    10.66.0.1  fd66::1   near servers         wan0  10.66.3.2  fd66:3::2  far servers
          10.66.0.3  fd66::3   nobody listens             10.66.4.0/24  fd66:4::/64
          10.66.0.53           the resolver               the router says: host unreachable
    wan0  10.66.3.1  fd66:3::1 ---- 10 ms each way ----
    lan0  10.66.1.1  fd66:1::1
          10.66.1.9  fd66:1::9   takes every packet, answers none
          10.66.1.10 fd66:1::a   no such neighbour
    10.66.2.0/24  fd66:2::/64    unreachable by an own route
    192.0.2.0/24  2001:db8::/32  no route at all
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import ssl
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.lab import certs, netns
from tests.lab.link import DelayLink
from tests.lab.resolver import Name, Resolver
from tests.lab.servers import Behaviour, Server, Witness

NEAR4, NEAR6 = "10.66.0.1", "fd66::1"
REFUSED4, REFUSED6 = "10.66.0.3", "fd66::3"
RESOLVER = "10.66.0.53"
SILENT4, SILENT6 = "10.66.1.9", "fd66:1::9"
DEAD_NEIGHBOUR4, DEAD_NEIGHBOUR6 = "10.66.1.10", "fd66:1::a"
UNREACHABLE4, UNREACHABLE6 = "10.66.2.1", "fd66:2::1"
NO_ROUTE4, NO_ROUTE6 = "192.0.2.1", "2001:db8::1"
FAR4, FAR6 = "10.66.3.2", "fd66:3::2"
ROUTER_REFUSES4, ROUTER_REFUSES6 = "10.66.4.1", "fd66:4::1"
CLOSED_PORT = 9  # nobody listens there on any address

ONE_WAY_S = 0.010
RTT_US = 20_000
LINK_LATE_US = 10_000  # the relay is a process: never early, late by scheduling
NEIGHBOUR_WAIT_MS = 100
SYN_RETRIES = 1  # ETIMEDOUT after 2 to 3 s instead of 127
DOMAIN = "lab.test"


@dataclass
class Site:
    """The same behaviour on one port of several addresses."""

    port: int
    servers: dict[str, Server]

    def witness(self, raddr: str, lport: int) -> Witness:
        """What the server at ``raddr`` saw of the connection from the client's ``lport``."""
        return self.servers[raddr].witness(lport)

    def close(self) -> None:
        for server in self.servers.values():
            server.close()


class Lab:
    """The whole lab. A context manager; everything in it goes when the block ends.

    Args:
        folder: for certificates.
        link_notes: takes the link's notes (see ``DelayLink``).
    """

    def __init__(self, folder: Path, *, link_notes: IO[bytes] | None = None) -> None:
        self.folder = folder
        self._ports = itertools.count(8001)
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            netns.remove_stale()
            self.here = stack.enter_context(netns.namespace(nameserver=RESOLVER))
            self.there = stack.enter_context(netns.namespace())
            self._lay_loopback_and_lan()
            link = DelayLink(
                self.here,
                self.there,
                delay_s=ONE_WAY_S,
                near_addresses=("10.66.3.1", "fd66:3::1"),
                far_addresses=(FAR4, FAR6),
                notes=link_notes,
            )
            stack.callback(link.close)
            self._lay_routes()
            self.ca_file, self.trusted, self.untrusted = certs.make_authority(
                folder, [f"*.{DOMAIN}", NEAR4, NEAR6, FAR4, FAR6]
            )
            self.client_ca_file, self.client = certs.make_client(folder)
            self.resolver = Resolver(self.here, RESOLVER, {})
            stack.callback(self.resolver.close)
            self._stack = stack.pop_all()

    def _lay_loopback_and_lan(self) -> None:
        here = self.here
        here.sysctl("net.ipv4.tcp_syn_retries", SYN_RETRIES)
        here.add_loopback(NEAR4, NEAR6, REFUSED4, REFUSED6, RESOLVER)
        here.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
        for version in ("ipv4", "ipv6"):
            here.sysctl(f"net/{version}/neigh/lan0/retrans_time_ms", NEIGHBOUR_WAIT_MS)
            here.sysctl(f"net/{version}/neigh/lan0/mcast_solicit", 1)
        here.ip("addr", "add", "10.66.1.1/24", "dev", "lan0")
        here.ip("addr", "add", "fd66:1::1/64", "dev", "lan0", "nodad")
        here.ip("link", "set", "lan0", "up")
        here.ip("link", "set", "lan1", "up")
        for silent in (SILENT4, SILENT6):
            # Sent out to a card that is nobody's: the other end drops it without a word.
            here.ip(
                "neigh", "add", silent, "lladdr", "02:00:00:00:00:99", "dev", "lan0",
                "nud", "permanent",
            )  # fmt: skip

    def _lay_routes(self) -> None:
        for version, unreachable, beyond, router in (
            ("ipv4", "10.66.2.0/24", "10.66.4.0/24", FAR4),
            ("ipv6", "fd66:2::/64", "fd66:4::/64", FAR6),
        ):
            option = "-4" if version == "ipv4" else "-6"
            self.here.ip(option, "route", "add", "unreachable", unreachable)
            self.here.ip(option, "route", "add", beyond, "via", router)
            self.there.ip(option, "route", "add", "unreachable", beyond)
            self.there.sysctl(f"net/{version}/conf/all/forwarding", 1)

    def serve(self, behaviour: Behaviour, *addresses: str, port: int | None = None) -> Site:
        """Start ``behaviour`` on ``addresses`` (near and far by default), all on one port."""
        addresses = addresses or (NEAR4, NEAR6, FAR4, FAR6)
        port = next(self._ports) if port is None else port
        servers = {
            address: Server(
                self.there if address in (FAR4, FAR6) else self.here, address, port, behaviour
            )
            for address in addresses
        }
        site = Site(port, servers)
        self._stack.callback(site.close)
        return site

    def free_port(self) -> int:
        """A port that nobody in the lab has yet."""
        return next(self._ports)

    def tls(self, version: str, **options: object) -> ssl.SSLContext:
        """A server's context with the trusted certificate; ``version`` is "1.2" or "1.3"."""
        exact = ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3
        return self.trusted.context(minimum=exact, maximum=exact, **options)  # type: ignore[arg-type]

    def name(self, label: str, *addresses: str, **answer: object) -> str:
        """Give ``label`` its addresses (see ``resolver.Name`` for the rest); the full name."""
        full = f"{label}.{DOMAIN}"
        self.resolver.zone[full] = Name(
            a=tuple(text for text in addresses if ipaddress.ip_address(text).version == 4),
            aaaa=tuple(text for text in addresses if ipaddress.ip_address(text).version == 6),
            **answer,  # type: ignore[arg-type]
        )
        return full

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
