"""The short-lived child that compiles bpf/, and the only file that imports bcc.

Started by monitor/kernel/loader.py with one end of a socket pair as descriptor 3, through which it
sends the image (one line of JSON about the making, then the image's own JSON) before it exits.
What it needed for that (LLVM, BTF: over 100 MB) goes with it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from pathlib import Path

from monitor.errors import LoadError, MonitorError
from monitor.kernel import bpf_syscall, btf, programs
from monitor.kernel.image import Image, MapSpec, ProgramSpec, name_maps

CHANNEL = 3


def _defines(kernel: btf.Btf) -> list[str]:
    offsets = kernel.offsets(programs.FIELDS)
    flags = []
    for struct_name, fields in programs.FIELDS.items():
        for field in fields:
            place = offsets[struct_name].get(field)
            if place is None:
                raise LoadError(
                    f"cannot read {struct_name}.{field}: this kernel's BTF has no such field, "
                    "which conmond needs"
                )
            name = f"{struct_name}_{field.replace('.', '_')}"
            flags.append(f"-DOFF_{name}={place.offset}")
            if place.bit_size is not None:
                mask = ((1 << place.bit_size) - 1) << (place.bit_offset or 0)
                flags.append(f"-DMASK_{name}={mask}")
    flags.append(f"-DLINUX_VERSION_CODE={version_code(os.uname().release)}")
    flags.append(f"-DPAGE_SIZE={os.sysconf('SC_PAGE_SIZE')}")
    # Allocation in every context came with bpf_mem_alloc (kernel commit 7c8199e24fa0, 6.1).
    if kernel.has_struct("bpf_mem_alloc"):
        flags.append("-DHAVE_BPF_MEM_ALLOC=1")
    # bpf_get_retval() in a program at connect() (kernel commit dea6a4e17013, 6.1).
    if kernel.has_name("cgroup_common_func_proto"):
        flags.append("-DHAVE_CGROUP_RETVAL=1")
    return flags


def version_code(release: str) -> int:
    """Return LINUX_VERSION_CODE of a release such as ``7.3.4+deb13-cloud-amd64``."""
    found = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", release)
    major, minor, patch = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    return (major << 16) + (minor << 8) + min(patch, 255)


def _source(folder: Path) -> str:
    return "".join(
        f'#line 1 "bpf/{name}"\n{(folder / name).read_text()}' for name in programs.SOURCES
    )


def compile_image(folder: Path, defines: list[str]) -> tuple[Image, dict[str, float]]:
    """Compile bpf/.

    Returns:
        The image, and what each step took in seconds.
    Raises:
        LoadError: BCC is missing or the source does not compile.
    """
    folder = folder.resolve()
    os.environ["BCC_KERNEL_SOURCE"] = str(folder / "kernel")
    started = time.monotonic()
    kernel = btf.Btf.load()
    flags = _defines(kernel)
    del kernel
    with_btf = time.monotonic()
    try:
        from bcc import BPF
    except ImportError as exc:
        raise LoadError(
            f"cannot import bcc: {exc}; install the package python3-bpfcc (Debian, Ubuntu), "
            "python3-bcc (Fedora) or python-bcc (Arch)"
        ) from exc
    imported = time.monotonic()
    try:
        module = BPF(text=_source(folder), cflags=[*flags, f"-I{folder}", *defines])
    except Exception as exc:  # BCC raises no other
        raise LoadError(f"cannot compile bpf/: {exc}") from exc
    # BCC has made the maps and put their descriptors into the instructions.
    places: dict[int, int] = {}
    maps = []
    for place, name in enumerate(programs.MAPS):
        descriptor = module[name].map_fd
        places[descriptor] = place
        kind, key_size, value_size, entries, map_flags = bpf_syscall.map_layout(descriptor)
        maps.append(MapSpec(name, kind, key_size, value_size, entries, map_flags))
    image = Image(
        maps=tuple(maps),
        programs=tuple(
            ProgramSpec(
                program.name,
                int(program.type),
                program.attach_type,
                name_maps(module.dump_func(program.name.encode()), places),
            )
            for program in programs.PROGRAMS
        ),
        license=programs.LICENSE,
    )
    return image, {
        "btf": with_btf - started,
        "import": imported - with_btf,
        "compile": time.monotonic() - imported,
    }


def main() -> int:
    """Run as ``python -m monitor.kernel.compile_child FOLDER [-DNAME=VALUE …]``."""
    channel = socket.socket(fileno=CHANNEL)
    try:
        image, seconds = compile_image(Path(sys.argv[1]), sys.argv[2:])
        report = json.dumps({"seconds": seconds}).encode() + b"\n" + image.to_json()
    except MonitorError as exc:
        report = json.dumps({"error": str(exc)}).encode()
    channel.sendall(report)
    # LLVM's destructors take a tenth of a second and nothing here needs them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
