import pytest

from tests.clients.watch import Watch
from tests.lab.fixtures import daemon, lab  # noqa: F401


@pytest.fixture(scope="session")
def watch(lab, daemon):  # noqa: F811
    return Watch(lab, daemon)
