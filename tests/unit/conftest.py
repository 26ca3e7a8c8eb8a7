"""What several of the modules here begin with."""

from __future__ import annotations

import contextlib
from collections import deque

import pytest

from monitor.api import server
from tests.unit.serving import Service


@pytest.fixture
def begin(tmp_path, monkeypatch):
    askers = deque()
    monkeypatch.setattr(server, "who_asks", lambda sock, group: askers.popleft())
    monkeypatch.setattr(server, "_TICK_S", 0.02)
    monkeypatch.setattr(server, "_LINGER_S", 0.02)
    with contextlib.ExitStack() as stack:

        def begin(**options):
            service = Service(str(tmp_path / "s"), askers, **options)
            stack.callback(service.close)
            return service

        yield begin


@pytest.fixture
def service(begin):
    return begin()
