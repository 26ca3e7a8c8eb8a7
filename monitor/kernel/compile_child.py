"""The short-lived child that compiles and loads bpf/, and the only file that imports bcc.

Started by monitor/kernel/loader.py with one end of a socket pair as descriptor 3. It sends one
message, JSON with the descriptors of programs and maps beside it, and exits; what it loaded lives
on in the daemon, what it needed for that (LLVM, BTF: over 100 MB) does not.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from monitor.errors import LoadError, MonitorError
from monitor.kernel import btf, programs

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
            flags.append(f"-DOFF_{struct_name}_{field.replace('.', '_')}={place.offset}")
    release = [int(part) for part in os.uname().release.split("-")[0].split(".")[:3]]
    major, minor, patch = (*release, 0, 0)[:3]
    flags.append(f"-DLINUX_VERSION_CODE={(major << 16) + (minor << 8) + min(patch, 255)}")
    flags.append(f"-DPAGE_SIZE={os.sysconf('SC_PAGE_SIZE')}")
    # Allocation in every context came with bpf_mem_alloc (kernel commit 7c8199e24fa0, 6.1).
    if kernel.has_struct("bpf_mem_alloc"):
        flags.append("-DHAVE_BPF_MEM_ALLOC=1")
    return flags


def _source(folder: Path) -> str:
    return "".join(
        f'#line 1 "bpf/{name}"\n{(folder / name).read_text()}' for name in programs.SOURCES
    )


def compile_and_load(folder: Path, defines: list[str]) -> tuple[dict[str, Any], list[int]]:
    """Compile bpf/ and load every program of the list.

    Returns:
        A report (``programs`` and ``maps``: the names of the descriptors that follow, in order;
        ``failed``: program name -> why; ``seconds``), and those descriptors.
    Raises:
        LoadError: BCC is missing, the source does not compile, or nothing may be loaded.
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
    compiled = time.monotonic()
    loaded: list[str] = []
    descriptors: list[int] = []
    failed: dict[str, str] = {}
    for program in programs.PROGRAMS:
        try:
            function = module.load_func(program.name, int(program.type), None, program.attach_type)
        except Exception as exc:  # noqa: BLE001 - likewise
            failed[program.name] = str(exc)
            continue
        loaded.append(program.name)
        descriptors.append(function.fd)
    for name in programs.MAPS:
        descriptors.append(module[name].map_fd)
    report = {
        "programs": loaded,
        "maps": list(programs.MAPS),
        "failed": failed,
        "seconds": {
            "btf": with_btf - started,
            "import": imported - with_btf,
            "compile": compiled - imported,
            "load": time.monotonic() - compiled,
        },
    }
    return report, descriptors


def main() -> int:
    """Run as ``python -m monitor.kernel.compile_child FOLDER [-DNAME=VALUE …]``."""
    channel = socket.socket(fileno=CHANNEL)
    descriptors: list[int] = []
    try:
        report, descriptors = compile_and_load(Path(sys.argv[1]), sys.argv[2:])
    except MonitorError as exc:
        report = {"error": str(exc)}
    ancillary = []
    if descriptors:
        packed = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
    channel.sendmsg([json.dumps(report).encode()], ancillary)
    # LLVM's destructors take a tenth of a second and nothing here needs them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
