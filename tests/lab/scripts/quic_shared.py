"""Two QUIC connections over one socket that is not connected, at the same time, and a third to the
first's peer.

    quic_shared.py ADDRESS PORT PORT CERTIFICATES NAME NAME NAME
"""

import asyncio
import sys

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection


class Shared(asyncio.DatagramProtocol):
    """One socket; hands datagrams to the connection of their sender."""

    def connection_made(self, transport):
        self.transport = transport
        self.talks = {}

    def datagram_received(self, data, peer):
        if peer[:2] in self.talks:
            self.talks[peer[:2]].datagram_received(data, peer)


async def main(address, first, second, certificates, *names):
    loop = asyncio.get_running_loop()
    _, shared = await loop.create_datagram_endpoint(Shared, local_addr=("0.0.0.0", 0))

    async def talk(port, name):
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["lab"], server_name=name, idle_timeout=2
        )
        configuration.load_verify_locations(certificates)
        protocol = QuicConnectionProtocol(QuicConnection(configuration=configuration))
        protocol.connection_made(shared.transport)
        shared.talks[address, port] = protocol
        protocol.connect((address, port))
        await protocol.wait_connected()
        reader, writer = await protocol.create_stream()
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read() == b"answer"
        protocol.close()

    await asyncio.gather(talk(int(first), names[0]), talk(int(second), names[1]))
    await talk(int(first), names[2])


asyncio.run(main(*sys.argv[1:]))
