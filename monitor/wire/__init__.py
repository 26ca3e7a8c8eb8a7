"""What the bytes and record headers on the wire say about a connection. Pure functions.

Bytes and numbers in, frozen dataclasses out: no I/O, no clock, no logging, nothing of the
kernel side. All of it is total: hostile bytes give None or a partial result, never an exception.
"""
