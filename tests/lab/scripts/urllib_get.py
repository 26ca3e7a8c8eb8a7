"""urllib_get.py URL TLS CA [COUNT]: fetch URL with urllib; TLS is 1.2, 1.3 or -."""

import ssl
import sys
import urllib.request

url, version, ca_file, *count = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
if version != "-":
    exact = ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3
    context.minimum_version = context.maximum_version = exact
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
)
for _ in range(int(*count) if count else 1):
    with opener.open(url) as response:
        response.read()
