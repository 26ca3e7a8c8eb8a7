"""What the compiling child makes of the kernel that it runs on."""

from __future__ import annotations

import pytest

from monitor.kernel.compile_child import version_code


@pytest.mark.parametrize(
    ("release", "code"),
    [
        ("6.1.0-50-cloud-amd64", 0x060100),
        ("7.3.4+deb13-cloud-amd64", 0x070304),
        ("6.12.117+deb13-cloud-amd64", 0x060C75),
        ("5.10.300", 0x050AFF),
        ("6.18-rc1+", 0x061200),
        ("6.6.87.2-microsoft-standard-WSL2", 0x060657),
        ("strange", 0),
    ],
)
def test_releases_as_distributions_write_them(release, code):
    assert version_code(release) == code
