from pathlib import Path

import pytest

from tests.lab.fixtures import lab  # noqa: F401

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """As for tests/clients: the lab's own delays are held to a clock too."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.flaky(reruns=2))
