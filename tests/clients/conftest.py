from pathlib import Path

import pytest

from tests.clients.watch import Watch
from tests.lab.fixtures import daemon, lab  # noqa: F401

_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def watch(lab, daemon):  # noqa: F811
    return Watch(lab, daemon)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(_HERE):
            # Figures are held to 5 % or 500 µs, and another machine's load on this host's cores
            # may cost more. A defect fails three times.
            item.add_marker(pytest.mark.flaky(reruns=2))
