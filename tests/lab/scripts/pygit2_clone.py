"""libgit2 with mbedTLS asks a server for a repository that is not there, so it fails after that."""

import sys
import tempfile

import pygit2

pygit2.settings.set_ssl_cert_locations(sys.argv[2], None)
with tempfile.TemporaryDirectory() as folder:
    pygit2.clone_repository(sys.argv[1], folder)
