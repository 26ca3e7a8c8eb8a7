"""libgit2 with mbedTLS asks a server for a repository; there is none, so it fails after the answer."""

import sys
import tempfile

import pygit2

pygit2.settings.set_ssl_cert_locations(sys.argv[2], None)
with tempfile.TemporaryDirectory() as folder:
    pygit2.clone_repository(sys.argv[1], folder)
