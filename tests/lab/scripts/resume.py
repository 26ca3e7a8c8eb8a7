"""resume.py HOST PORT TLS CA: two TLS connections, the second resumes the first's session."""

import socket
import ssl
import sys

host, port, version, ca_file = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
exact = ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3
context.minimum_version = context.maximum_version = exact
session = None
for expected in (False, True):
    plain = socket.create_connection((host, int(port)))
    with context.wrap_socket(plain, server_hostname=host, session=session) as tls:
        tls.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
        while tls.recv(4096):
            pass
        session = tls.session
        assert tls.session_reused is expected
