"""Who may import what: the arrows point inward, and the core touches nothing outside itself."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): (
        path
    )
    for package in ("monitor", "conmon")
    for path in sorted((ROOT / package).rglob("*.py"))
}
CORE = (
    "monitor.decode", "monitor.correlate", "monitor.wire", "monitor.stats",
    "conmon.record", "conmon.names", "conmon.errors", "conmon.ciphers", "conmon.http1",
    "conmon.heads",
)  # fmt: skip
# Files, processes, clocks and threads. time.strftime() and socket.inet_ntop() only compute.
OUTSIDE = {
    "asyncio", "ctypes", "fcntl", "glob", "io", "logging", "mmap", "os", "pathlib", "random",
    "select", "selectors", "shutil", "signal", "subprocess", "sys", "tempfile", "threading",
}  # fmt: skip
COMPUTES = {
    "time": {"strftime", "gmtime"},
    "socket": {"inet_ntop", "inet_pton", "AF_INET", "AF_INET6"},
}
MOST_LINES = 600
# Imported where somebody asks for what they do, and a sentence says so where they are missing.
OPTIONAL = {"conmon.cli": {"h2", "psutil"}, "conmon.probe": {"h2"}}


def within(name: str, packages: tuple[str, ...] | str) -> bool:
    packages = (packages,) if isinstance(packages, str) else packages
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of(module: str) -> Iterator[str]:
    """Every module that this one imports, by its full name, wherever in the file."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*base, node.module or ""]).rstrip(".") if node.level else node.module
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def importers(name: str) -> set[str]:
    return {m for m in MODULES if any(within(found, name) for found in imports_of(m))}


def core() -> list[str]:
    return [module for module in MODULES if within(module, CORE)]


def test_there_is_something_to_look_at() -> None:
    assert {"monitor.decode", "monitor.correlate.core", "conmon.record"} <= set(core())
    assert "monitor.errors.DecodeError" in set(imports_of("monitor.decode"))
    assert "conmon.errors" in set(imports_of("conmon.record"))  # a relative one


def test_bcc_is_imported_in_one_place() -> None:
    assert importers("bcc") == {"monitor.kernel.compile_child"}


def test_pyroute2_is_imported_in_one_place_at_most() -> None:
    assert len(importers("pyroute2")) <= 1


def test_conmon_needs_the_standard_library_alone() -> None:
    for module in MODULES:
        if within(module, "conmon"):
            outside = {
                name.partition(".")[0] for name in imports_of(module) if not within(name, "conmon")
            } - set(sys.stdlib_module_names)
            assert outside <= OPTIONAL.get(module, set()), module


def test_nothing_of_the_core_imports_what_lies_around_it() -> None:
    allowed = (*CORE, "monitor.errors")
    for module in core():
        ours = {name for name in imports_of(module) if within(name, ("monitor", "conmon"))}
        assert {name for name in ours if not within(name, allowed)} <= {"monitor"}, module


def test_decode_knows_nothing_of_what_is_made_of_it() -> None:
    for module in MODULES:
        if within(module, ("monitor.decode", "monitor.wire")):
            later = ("monitor.correlate", "conmon")
            tables = ("conmon.ciphers",)
            found = [name for name in imports_of(module) if within(name, later)]
            assert not [name for name in found if not within(name, tables)], module


@pytest.mark.parametrize("module", [m for m in core() if m.startswith("monitor")])
def test_the_core_has_no_files_clocks_or_threads(module: str) -> None:
    roots = {name.partition(".")[0] for name in imports_of(module)}
    assert roots & OUTSIDE == set()
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr in COMPUTES.get(node.value.id, {node.attr}), ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "exec", "eval")
        if isinstance(node, ast.ImportFrom) and node.module in COMPUTES:
            assert {alias.name for alias in node.names} <= COMPUTES[node.module]


def test_no_module_holds_two_subjects() -> None:
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > MOST_LINES}
    assert long == {}
