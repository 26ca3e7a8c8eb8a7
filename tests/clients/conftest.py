import pytest

from tests.clients.watch import Watch
from tests.lab.fixtures import daemon, lab  # noqa: F401


@pytest.fixture(scope="session")
def watch(lab, daemon):  # noqa: F811
    return Watch(lab, daemon)


def pytest_collection_modifyitems(items):
    """The tests over all records of the session come after those that make them."""
    items.sort(key=lambda item: item.path.name == "test_records_of_the_session.py")
