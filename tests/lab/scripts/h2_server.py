"""Answers HTTP/2 at ``/MS/TAG`` after that many milliseconds, and notes when it did."""

import asyncio
import os
import ssl
import sys
import time

import h2.config
import h2.connection
import h2.events


class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.paths = {}
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data):
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.paths[event.stream_id] = dict(event.headers)[":path"]
            elif isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                _, wait, tag = self.paths.pop(event.stream_id).split("/")
                call = self.answer, event.stream_id, tag
                if wait == "0":
                    self.answer(*call[1:])
                else:
                    asyncio.get_running_loop().call_later(int(wait) / 1000, *call)
        self.flush()

    def answer(self, stream, tag):
        with open(os.environ["H2_NOTES"], "a") as notes:
            notes.write(f"{tag} {time.monotonic_ns()}\n")
        self.h2.send_headers(stream, [(":status", "200"), ("content-length", "2")])
        self.h2.send_data(stream, b"ok", end_stream=True)
        self.flush()


async def main(port, cert, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    await (await loop.create_server(Server, "0.0.0.0", int(port), ssl=context)).serve_forever()


asyncio.run(main(*sys.argv[1:4]))
