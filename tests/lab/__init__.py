"""A small internet in network namespaces: peers, names and delays that are known beforehand.

``Lab`` in ``tests.lab.world`` puts the parts together; the parts know nothing of each other:
``netns`` (namespaces), ``link`` (a path with a round-trip time), ``resolver`` (DNS),
``certs`` (certificates), ``servers`` (HTTP and TLS), ``daemon`` (conmond itself).
Needs root, iproute2 and /dev/net/tun; sends nothing outside its namespaces.
"""
