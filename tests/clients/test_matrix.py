"""Every program, HTTP and TLS 1.2 and 1.3, IPv4 and IPv6, by name and by literal."""

import pytest

from tests.clients.expectations import Case, differences, expected
from tests.lab import world
from tests.lab.programs import PROGRAMS
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("curl", "ip", "node", "openssl", "wget")

# Three waits, all different, so that no figure can stand in another's place.
DNS_S, HELLO_S, RESPONSE_S = 0.150, 0.170, 0.190

COMBINATIONS = [
    pytest.param(program, tls, id=f"{program.name}-{f'tls{tls}' if tls else 'http'}")
    for program in PROGRAMS
    for tls in program.schemes
]


@pytest.fixture(scope="module")
def sites(lab):
    def secure(version):
        return lab.serve(
            Behaviour(
                tls=lab.tls(version, alpn=("http/1.1",)),
                hello_delay_s=HELLO_S,
                response_delay_s=RESPONSE_S,
            )
        )

    return {
        None: lab.serve(Behaviour(response_delay_s=RESPONSE_S)),
        "1.2": secure("1.2"),
        "1.3": secure("1.3"),
    }


@pytest.mark.parametrize("named", [True, False], ids=["name", "literal"])
@pytest.mark.parametrize("address", [world.FAR4, world.FAR6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(("program", "tls"), COMBINATIONS)
def test_every_field_is_right(lab, watch, sites, program, tls, address, named):
    host = lab.name(f"matrix{len(address)}", address, delay_s=DNS_S) if named else address
    client, site = program(lab), sites[tls]
    seen = watch.program(client, host, site.port, tls)
    assert seen.done.code == 0, seen.done.stderr
    case = Case(
        lab=lab,
        program=client,
        host=host,
        address=address,
        port=site.port,
        tls=tls,
        seen=seen,
        witness=site.witness(address, seen.record["lport"]),
    )
    assert differences(seen.record, expected(case)) == {}
