"""Debian for the virtual machine: one root file system, and kernels of several releases.

Everything comes from the machine's own apt sources and is kept in a cache folder. Kernels are
unpacked, never installed. Their cloud flavours have NVMe, ext4 and all that conmond asks for built
in, so neither modules nor an initial RAM disk are needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from tests.systems.debian import DebianError, archive, run

__all__ = ["KERNELS", "kernel", "root_image"]

# series -> suites that had it when this was written; the newest that one of them has is taken
KERNELS = {
    "5.10": ("bullseye", "bullseye-security"),
    "6.1": ("bookworm",),
    "6.12": ("trixie", "bookworm-backports"),
    "7": ("trixie-backports",),
}
SUITE = "bookworm"  # whose Python the package is built for
PACKAGES = (
    "systemd", "systemd-sysv", "udev", "kmod", "dbus", "python3", "python3-bpfcc", "curl",
    "openssl", "iproute2", "procps", "bpftool", "util-linux", "passwd", "libgnutls30", "wget",
)  # fmt: skip
# Runs what stands on the second disk, at every boot; its output is the machine's console.
UNIT = """[Unit]
Description=what the tests want done
After=multi-user.target
[Service]
Type=idle
ExecStart=/bin/sh -c 'mkdir -p /run/payload && tar -xf /dev/nvme0n1p2 -C /run/payload && exec sh /run/payload/run'
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=multi-user.target
"""  # noqa: E501
IMAGE_BYTES = "1300M"


def cache() -> Path:
    """Where images are kept: $CONMOND_VM_CACHE, or a folder of the user's cache."""
    named = os.environ.get("CONMOND_VM_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "conmond-vm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def mirror() -> str:
    """The archive that this machine's apt takes Debian's main packages from.

    Raises:
        DebianError: it takes none.
    """
    if site := archive():
        return site
    raise DebianError("apt on this machine knows no Debian main: run apt-get update first")


def kernel(series: str) -> Path:
    """The newest kernel of a series, fetched once: a folder with vmlinuz, modules.tar, release.

    Raises:
        DebianError: the archive has none.
    """
    folder = cache() / f"kernel-{series}"
    if not (folder / "modules.tar").exists():
        with tempfile.TemporaryDirectory(dir=cache()) as work:
            fetch_kernel(series, Path(work))
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(Path(work) / "kernel", folder)
    return folder


def fetch_kernel(series: str, work: Path) -> None:
    """Unpack a kernel into work/kernel, with an apt state of its own."""
    site = mirror()
    state = work / "apt"
    for name in ("lists/partial", "cache/archives/partial", "parts", "preferences"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    options = [
        f"Dir::State={state}", f"Dir::State::status={state}/status", f"Dir::Cache={state}/cache",
        f"Dir::Etc::sourcelist={state}/sources.list", f"Dir::Etc::sourceparts={state}/parts",
        f"Dir::Etc::preferences={state}/none", f"Dir::Etc::preferencesparts={state}/preferences",
        "APT::Architecture=amd64", "Acquire::Languages=none", "APT::Sandbox::User=root",
    ]  # fmt: skip
    apt = [part for option in options for part in ("-o", option)]
    failures = []
    for suite in KERNELS[series]:
        at = f"{site.rstrip('/')}-security" if suite.endswith("-security") else site
        (state / "sources.list").write_text(f"deb [signed-by={keyring}] {at} {suite} main\n")
        try:
            run("apt-get", *apt, "-qq", "update")
            names = run("apt-cache", *apt, "pkgnames", f"linux-image-{series}").split()
        except DebianError as exc:
            failures.append(str(exc))
            continue
        plain = [n for n in names if n.endswith("-cloud-amd64") and "unsigned" not in n]
        if not plain:
            failures.append(f"{suite} has no linux-image-{series}*-cloud-amd64")
            continue
        newest = run("sort", "-V", input="\n".join(plain)).split()[-1]
        # split into several packages from 6.19 on
        release = newest.removeprefix("linux-image-")
        wanted = [newest]
        for part in ("binary", "modules"):
            wanted += run("apt-cache", *apt, "pkgnames", f"linux-{part}-{release}").split()
        run("apt-get", *apt, "download", *wanted, cwd=work)
        for package in work.glob("*.deb"):
            run("dpkg-deb", "-x", package, work / "unpacked")
        (image,) = (work / "unpacked").glob("**/vmlinuz*")
        (work / "kernel").mkdir()
        shutil.copy(image, work / "kernel" / "vmlinuz")
        (work / "kernel" / "release").write_text(release + "\n")
        # sock_diag alone is a module that conmond needs
        kept = [
            path.relative_to(work / "unpacked")
            for path in (work / "unpacked").glob(f"**/modules/{release}/**/*")
            if path.is_file() and ("_diag.ko" in path.name or path.name.startswith("modules."))
        ]
        run(
            "tar", "-cf", work / "kernel" / "modules.tar", "-C", work / "unpacked",
            "--transform", "s,^usr/,,", "--transform", "s,^,usr/,", *kept,
        )  # fmt: skip
        return
    raise DebianError(f"no kernel {series}: {'; '.join(failures)}")


def root_image() -> Path:
    """The root file system, made once for each list of packages: ext4, to be used as a snapshot."""
    made_from = hashlib.sha256(repr((SUITE, PACKAGES, UNIT)).encode()).hexdigest()[:16]
    image = cache() / f"root-{made_from}.img"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(dir=cache()) as work:
        root = Path(work) / "root"
        run(
            "mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}",
            "--skip=check/empty", SUITE, root, mirror(),
        )  # fmt: skip
        (root / "etc/systemd/system/payload.service").write_text(UNIT)
        wants = root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "payload.service").symlink_to("/etc/systemd/system/payload.service")
        (root / "etc/hostname").write_text("vm\n")
        (root / "etc/hosts").write_text(
            "127.0.0.1 localhost vm\n::1 localhost\n127.0.0.1 web.test\n"
        )
        (root / "etc/fstab").write_text("/dev/nvme0n1p1 / ext4 rw,noatime 0 0\n")
        # nobody waits for these
        for unit in ("systemd-timesyncd", "apt-daily.timer", "getty@tty1", "e2scrub_reap"):
            name = unit if "." in unit else f"{unit}.service"
            (root / "etc/systemd/system" / name).symlink_to("/dev/null")
        shutil.rmtree(root / "usr/share/doc", ignore_errors=True)
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        fresh = Path(work) / "root.img"
        run("mke2fs", "-q", "-t", "ext4", "-d", root, fresh, IMAGE_BYTES)
        os.rename(fresh, image)
    return image
