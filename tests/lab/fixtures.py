"""Fixtures of the root tests: the lab and one daemon, each made once in a session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.daemon import Daemon
from tests.lab.world import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab; asking for it without root fails, it does not skip."""
    if os.geteuid():
        pytest.fail("the lab makes network namespaces, which needs root")
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(scope="session")
def daemon(lab: Lab) -> Iterator[Daemon]:
    """conmond, started once; at the end of the session it must end cleanly."""
    running = Daemon()
    try:
        yield running
    except BaseException:
        running.kill()
        raise
    running.stop()
