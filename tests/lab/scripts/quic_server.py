"""A QUIC server that answers every stream; says "up" and serves until it is ended. With ``retry``
it sends clients away first, to come again with a token."""

import asyncio
import sys

from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration


def answer(reader, writer):
    async def echo():
        await reader.read()
        writer.write(b"answer")
        writer.write_eof()

    task = asyncio.ensure_future(echo())
    task.add_done_callback(lambda done: done.exception())


async def main(address, port, certificate, key, *options):
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3", "lab"])
    configuration.load_cert_chain(certificate, key)
    await serve(
        address,
        int(port),
        configuration=configuration,
        stream_handler=answer,
        retry="retry" in options,
    )
    print("up", flush=True)
    await asyncio.Future()


asyncio.run(main(*sys.argv[1:]))
