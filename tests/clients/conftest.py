from tests.lab.fixtures import daemon, lab  # noqa: F401
