"""asyncio_get.py URL TLS CA: one GET over asyncio streams; TLS is 1.2, 1.3 or -."""

import asyncio
import contextlib
import ssl
import sys
from urllib.parse import urlsplit


async def get(url, version, ca_file):
    parts = urlsplit(url)
    context = None
    if version != "-":
        context = ssl.create_default_context(cafile=ca_file)
        exact = ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3
        context.minimum_version = context.maximum_version = exact
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    head = f"GET / HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    await reader.read()
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()


asyncio.run(get(*sys.argv[1:]))
