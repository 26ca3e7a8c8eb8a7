"""The query socket: HTTP/1.1 with JSON over a Unix socket (docs/design/053)."""
