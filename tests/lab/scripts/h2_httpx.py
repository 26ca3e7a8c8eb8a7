"""One request over HTTP/2 by httpx: URL CA-FILE [BODY-FILE]."""

import ssl
import sys
from pathlib import Path

import httpx

url, ca, *body = sys.argv[1:]
with httpx.Client(http2=True, verify=ssl.create_default_context(cafile=ca)) as client:
    content = Path(body[0]).read_bytes() if body else None
    answer = client.request("POST" if body else "GET", url, content=content)
assert answer.http_version == "HTTP/2", answer
