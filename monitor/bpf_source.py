"""Where the kernel side's C files are."""

from __future__ import annotations

from pathlib import Path

from monitor.errors import LoadError

__all__ = ["bpf_folder"]


def bpf_folder() -> Path:
    """Return the absolute path of the folder with event.h, the ``*.bpf.c`` files and ``kernel/``.

    It is ``bpf/`` beside this package in a source tree, and ``bpf/`` inside it once installed
    (docs/design/020).

    Raises:
        LoadError: in neither place, so the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "bpf", package.parent / "bpf"):
        if (folder / "event.h").is_file():
            return folder
    raise LoadError(f"cannot find the kernel side's source: no event.h in {package / 'bpf'}")
