"""monitor.kernel.cached_stat: the same number as stat(), through links, and errors as errors."""

from __future__ import annotations

import pytest

from monitor.kernel.cached_stat import inode_of


def test_it_is_what_stat_says(tmp_path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    assert inode_of(tmp_path / "link") == inode_of(str(file)) == file.stat().st_ino
    with pytest.raises(FileNotFoundError):
        inode_of(tmp_path / "none")
