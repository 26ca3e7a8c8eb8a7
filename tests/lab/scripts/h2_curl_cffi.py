"""One request over HTTP/2 by libcurl with BoringSSL: URL CA-FILE [BODY-FILE]."""

import sys
from pathlib import Path

from curl_cffi import requests

url, ca, *body = sys.argv[1:]
if body:
    requests.post(url, data=Path(body[0]).read_bytes(), verify=ca, http_version="v2")
else:
    requests.get(url, verify=ca, http_version="v2")
