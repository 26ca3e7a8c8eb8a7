"""Connect as each line of JSON on stdin says, and print what came of it: null where it did not
fail."""

import errno
import json
import socket
import sys

kept = []
for line in sys.stdin:
    way = json.loads(line)
    family = socket.AF_INET6 if ":" in way["address"] else socket.AF_INET
    sock = kept[-1] if way.get("again") else socket.socket(family)
    sock.settimeout(way.get("timeout_s"))
    for option in way.get("options", ()):
        sock.setsockopt(*option)
    if "bind" in way:
        sock.bind(tuple(way["bind"]))
    to = (way["address"], way["port"])
    said = None
    try:
        sock.connect((*to, 0, way.get("scope", 0)) if family == socket.AF_INET6 else to)
    except TimeoutError:
        said = "timeout"
    except OSError as error:
        said = errno.errorcode[error.errno]
    if way.get("keep"):
        kept.append(sock)
    else:
        sock.close()
    print(json.dumps(said))
