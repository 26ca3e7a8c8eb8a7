"""One QUIC connection and stream by aioquic; prints its handshake's microseconds and its port."""

import asyncio
import sys
import time

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

times = {}


class Noting(QuicConnectionProtocol):
    def transmit(self):
        times.setdefault("hello", time.monotonic())
        super().transmit()

    def quic_event_received(self, event):
        if isinstance(event, events.HandshakeCompleted):
            times["done"] = time.monotonic()
        super().quic_event_received(event)


async def main(host, port, certificates):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["lab"], idle_timeout=2)
    configuration.load_verify_locations(certificates)
    async with connect(
        host, int(port), configuration=configuration, create_protocol=Noting
    ) as client:
        reader, writer = await client.create_stream()
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read() == b"answer"
    print(round((times["done"] - times["hello"]) * 1e6))


asyncio.run(main(*sys.argv[1:]))
