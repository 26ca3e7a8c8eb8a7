"""One GET by curl_cffi: curl with BoringSSL and c-ares inside, as it imitates Chrome."""

import sys

from curl_cffi import requests

print(requests.get(sys.argv[1], verify=sys.argv[2], impersonate="chrome").status_code)
