"""Root file systems of Debian's releases, made from the machine's own apt sources and kept.

What runs inside one has this machine's kernel and network, and a mount namespace of its own, so
that nothing stays mounted in a folder that may be removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["DebianError", "archive", "inside", "root_of", "run"]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "systems"
# Named last in the shell that makes the mounts: root, pairs of mounts, and the command after "--".
ENTER = """
root=$1; shift
while [ "$1" != -- ]; do
	[ -e "$root$2" ] || mkdir -p "$root$2" || exit
	mount --bind "$1" "$root$2" || exit
	shift 2
done
shift
mount --rbind /sys "$root/sys" && mount --rbind /dev "$root/dev" &&
	mount -t proc proc "$root/proc" && exec chroot "$root" "$@"
"""


class DebianError(Exception):
    """A root file system cannot be made."""


def run(*command: str | Path, **more: object) -> str:
    """Run a command; its output.

    Raises:
        DebianError: it failed; its last words.
    """
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **more
    )  # type: ignore[call-overload]
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise DebianError(f"{command[0]} ended with {done.returncode}: {' / '.join(words)}")
    return str(done.stdout)


def archive() -> str | None:
    """The archive that this machine's apt takes Debian's main packages from; None: from none."""
    if shutil.which("apt-get") is None:
        return None
    lines = run(
        "apt-get", "indextargets", "--format", "$(SITE)|$(LABEL)|$(COMPONENT)|$(IDENTIFIER)"
    )
    for line in lines.splitlines():
        site, _, kind = line.partition("|")
        if kind == "Debian|main|Packages":
            return site
    return None


def root_of(suite: str, packages: Sequence[str], *options: str) -> Path:
    """The root file system of a release with some packages, made once for each list of them.

    Args:
        options: of mmdebstrap.
    Raises:
        DebianError: it cannot be made.
    """
    site = archive()
    if site is None:
        raise DebianError("apt on this machine knows no Debian main: run apt-get update first")
    made_from = hashlib.sha256(repr((suite, sorted(packages), options)).encode()).hexdigest()[:12]
    root = FOLDER / f"{suite}-{made_from}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            return root
        with tempfile.TemporaryDirectory(dir=FOLDER) as work:
            fresh = Path(work) / "root"
            run(
                "mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}",
                "--skip=check/empty", '--dpkgopt=path-exclude="/usr/share/doc/*"',
                '--dpkgopt=path-exclude="/usr/share/man/*"', "--dpkgopt=force-unsafe-io",
                *options, suite, fresh, site,
            )  # fmt: skip
            os.rename(fresh, root)
        for old in FOLDER.glob(f"{suite}-*"):
            if old != root:
                shutil.rmtree(old)
    return root


def inside(
    root: Path, mounts: Mapping[Path, str], *command: str | Path, **environment: str
) -> list[str]:
    """The command that runs another inside a root file system.

    Args:
        mounts: folder of this machine -> where it is seen in there.
        environment: all that the command gets besides PATH.
    """
    pairs = [part for source, place in mounts.items() for part in (str(source), place)]
    settings = [f"{name}={value}" for name, value in environment.items()]
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "enter"),
        *(str(root), *pairs, "--"),
        *("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *settings),
        *map(str, command),
    ]
