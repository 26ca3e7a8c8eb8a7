from pathlib import Path

import pytest

from tests.lab.fixtures import lab  # noqa: F401

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """As for tests/clients: probes come while the lab's programs run."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.flaky(reruns=2))
