"""Record real TLS connections into tests/data/tls. See __main__.py."""
