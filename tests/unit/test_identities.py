"""monitor.kernel.identities on a made-up /proc and cgroup tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor.decode import ExecEvent, Task
from monitor.kernel import identities
from monitor.kernel.identities import ProcIdentities, find_cgroup2, unit_and_container

PID, START_NS = 23, 99
CONTAINER = "0123456789abcdef" * 4


class Tree:
    """/proc with one process, and a cgroup tree."""

    def __init__(self, base: Path) -> None:
        self.proc = base / "proc"
        self.cgroup = base / "cgroup"
        self.exe = base / "usr" / "bin" / "client"
        self.exe.parent.mkdir(parents=True)
        self.exe.write_bytes(b"")
        self.inode = self.exe.stat().st_ino
        (self.proc / str(PID)).mkdir(parents=True)
        (self.proc / str(PID) / "exe").symlink_to(self.exe)
        self.cgroup.mkdir()

    def group(self, path: str, *, of_process: bool = True) -> int:
        folder = self.cgroup / path
        folder.mkdir(parents=True, exist_ok=True)
        if of_process:
            (self.proc / str(PID) / "cgroup").write_text(f"1:name=x:/other\n0::/{path}\n")
        return folder.stat().st_ino

    def end_process(self) -> None:
        for name in ("exe", "cgroup"):
            (self.proc / str(PID) / name).unlink(missing_ok=True)

    def identities(self) -> ProcIdentities:
        return ProcIdentities(str(self.cgroup), str(self.proc))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def identify(who: ProcIdentities, **changes):
    facts = {
        "pid": PID, "start_ns": START_NS, "comm": b"client\0\0", "exe_ino": 0, "exe_dev": 8,
        "cgroup_id": 0,
    }  # fmt: skip
    return who.identify(**{**facts, **changes})


def exec_of(path: bytes | None, *, pid=PID, start_ns=START_NS, ino=7, dev=8) -> ExecEvent:
    return ExecEvent(Task(start_ns, 0, ino, dev, pid, pid, 1, 0, 0, b"client"), 1, path)


# ---- programs ------------------------------------------------------------------------------------


def test_a_program_seen_to_start_is_known_after_it_has_gone(tree: Tree) -> None:
    who = tree.identities()
    tree.end_process()
    who.learn(exec_of(b"/usr/bin/gone"))
    assert identify(who, exe_ino=7).exe == "/usr/bin/gone"


def test_a_fork_of_a_known_program_is_that_program(tree: Tree) -> None:
    who = tree.identities()
    who.learn(exec_of(b"/usr/sbin/server", pid=5, ino=7, dev=8))
    assert identify(who, pid=6, exe_ino=7, exe_dev=8).exe == "/usr/sbin/server"
    assert identify(who, pid=6, exe_ino=7, exe_dev=9).comm == "client"
    assert identify(who, pid=8, exe_ino=7, exe_dev=9).exe is None  # same number, another disk


def test_an_older_process_is_looked_up_in_proc(tree: Tree) -> None:
    who = tree.identities()
    assert identify(who, exe_ino=tree.inode).exe == str(tree.exe)
    tree.end_process()
    assert identify(who, exe_ino=tree.inode).exe == str(tree.exe)  # remembered
    assert identify(who, pid=77, exe_ino=tree.inode).exe == str(tree.exe)  # by its inode


def test_a_pid_that_is_another_process_by_now_is_not_believed(tree: Tree) -> None:
    assert identify(tree.identities(), exe_ino=tree.inode + 1).exe is None


def test_a_pid_used_again_is_another_program(tree: Tree) -> None:
    who = tree.identities()
    who.learn(exec_of(b"/bin/first", start_ns=1, ino=1))
    who.learn(exec_of(b"/bin/second", start_ns=2, ino=2))
    assert identify(who, start_ns=1, exe_ino=1).exe == "/bin/first"
    assert identify(who, start_ns=2, exe_ino=2).exe == "/bin/second"


def test_names_that_are_no_text_stay_readable(tree: Tree) -> None:
    who = tree.identities()
    who.learn(exec_of(b"/opt/caf\xe9"))
    identity = identify(who, comm=b"\xff\x1b[31m\0junk", exe_ino=7)
    assert (identity.comm, identity.exe) == ("\\xff\x1b[31m", "/opt/caf\\xe9")


def test_a_thread_that_renames_itself_is_told_by_its_new_name(tree: Tree) -> None:
    who = tree.identities()
    assert [identify(who, comm=c).comm for c in (b"one\0", b"two\0", b"one\0")] == [
        "one",
        "two",
        "one",
    ]


def test_after_another_exec_it_is_another_program(tree: Tree) -> None:
    who = tree.identities()
    who.learn(exec_of(b"/bin/sh", ino=1))
    assert identify(who, comm=b"x\0", exe_ino=1).exe == "/bin/sh"
    who.learn(exec_of(b"/usr/bin/client", ino=2))
    assert identify(who, comm=b"x\0", exe_ino=2).exe == "/usr/bin/client"
    # a connection that the first program made, told only now
    assert identify(who, comm=b"y\0", exe_ino=1).exe == "/bin/sh"


def test_a_path_that_was_not_told_is_asked_for_at_once(tree: Tree) -> None:
    who = tree.identities()
    who.learn(exec_of(None, ino=tree.inode))
    tree.end_process()
    assert identify(who, exe_ino=tree.inode).exe == str(tree.exe)
    who.learn(exec_of(None, pid=PID + 1, ino=tree.inode + 1))
    assert identify(who, pid=PID + 1, exe_ino=tree.inode + 1).exe is None


@pytest.mark.parametrize(
    ("group", "pids", "wanted"),
    [
        (f"docker/{CONTAINER}", f"{PID}\t500\t7", 7),
        (f"docker/{CONTAINER}", f"{PID}", None),  # it shares the host's
        ("system.slice/x.service", f"{PID}\t7", None),
    ],
)
def test_the_pid_that_a_container_sees(tree: Tree, group, pids, wanted) -> None:
    number = tree.group(group)
    status = tree.proc / str(PID) / "status"
    status.write_text(f"Name:\tx\nPid:\t{PID}\nNSpid:\t{pids}\nVmPeak:\t1 kB\n")
    seen, learnt = tree.identities(), tree.identities()
    assert identify(seen, cgroup_id=number, exe_ino=tree.inode).container_pid == wanted
    assert identify(seen, cgroup_id=number, exe_ino=tree.inode + 1).container_pid == wanted
    event = exec_of(b"/usr/bin/client", ino=tree.inode)
    learnt.learn(event._replace(task=event.task._replace(cgroup_id=number)))
    tree.end_process()
    status.unlink()
    assert identify(learnt, cgroup_id=number, exe_ino=tree.inode).container_pid == wanted
    assert identify(tree.identities(), cgroup_id=number).container_pid is None


# ---- cgroups -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "unit", "container"),
    [
        ("/system.slice/nginx.service", "nginx.service", None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x@y.service",
         "app-x@y.service", None),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", None),
        ("/system.slice/nginx.service/worker", "nginx.service", None),
        (f"/system.slice/docker-{CONTAINER}.scope", f"docker-{CONTAINER}.scope", CONTAINER),
        (f"/docker/{CONTAINER}", None, CONTAINER),
        (f"/kubepods/burstable/pod1-2/{CONTAINER}", None, CONTAINER),
        (f"/machine.slice/libpod-{CONTAINER}.scope/container", f"libpod-{CONTAINER}.scope",
         CONTAINER),
        (f"/system.slice/k8s.slice/cri-containerd-{CONTAINER}.scope",
         f"cri-containerd-{CONTAINER}.scope", CONTAINER),
        ("/system.slice", None, None),
        ("/", None, None),
        (f"/docker/{CONTAINER}0", None, None),
        ("/lxc.payload.web-1/system.slice/nginx.service", "nginx.service", "web-1"),
        ("/lxc.payload.web-1/.lxc", None, "web-1"),
        ("/lxc.payload/web", None, "web"),
        ("/lxc/101/ns/init.scope", "init.scope", "101"),
        ("/lxc.monitor.web-1", None, None),
        ("/lxc.monitor/web", None, None),
        ("/lxc.payload.", None, None),
        (f"/lxc.payload.web/docker/{CONTAINER}", None, CONTAINER),
        ("/machine.slice/systemd-nspawn@a\\x2db.service/payload/system.slice/x.service",
         "x.service", "a-b"),
        ("/machine.slice/systemd-nspawn@a.service/supervisor", "systemd-nspawn@a.service", None),
        ("/machine.slice/machine-web\\x2d1.scope/payload", "machine-web\\x2d1.scope", "web-1"),
        ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt",
         "machine-qemu\\x2d1\\x2dvm.scope", None),
        (f"/ecs/{CONTAINER[:32]}/{CONTAINER[:32]}-2495160603", None,
         f"{CONTAINER[:32]}-2495160603"),
        (f"/ecs/5f0e-11/{CONTAINER}", None, CONTAINER),
        (f"/ecstasks.slice/ecstasks-{CONTAINER[:32]}.slice/docker-{CONTAINER}.scope",
         f"docker-{CONTAINER}.scope", CONTAINER),
        (f"/x/{CONTAINER[:32]}-2495160603", None, None),
        (f"/machine.slice/libpod-conmon-{CONTAINER}.scope", f"libpod-conmon-{CONTAINER}.scope",
         None),
        (f"/crio-conmon-{CONTAINER}.scope", f"crio-conmon-{CONTAINER}.scope", None),
    ],
)  # fmt: skip
def test_unit_and_container_of_a_cgroup(path, unit, container) -> None:
    assert unit_and_container(path) == (unit, container)


def test_a_process_s_unit_is_found_by_its_cgroup_id(tree: Tree) -> None:
    number = tree.group("system.slice/client.service")
    assert identify(tree.identities(), cgroup_id=number).unit == "client.service"


def test_a_process_that_has_gone_is_found_in_the_tree(tree: Tree) -> None:
    for i in range(23):
        tree.group(f"system.slice/s{i}.service", of_process=False)
    number = tree.group(f"docker/{CONTAINER}", of_process=False)
    tree.end_process()
    assert identify(tree.identities(), cgroup_id=number).container == CONTAINER


def test_a_process_that_moved_is_told_by_where_it_was(tree: Tree) -> None:
    then = tree.group("system.slice/then.service")
    tree.group("system.slice/now.service")
    assert identify(tree.identities(), cgroup_id=then).unit == "then.service"


def test_without_a_cgroup_tree_there_is_no_unit(tree: Tree) -> None:
    number = tree.group("system.slice/client.service")
    assert identify(ProcIdentities(None, str(tree.proc)), cgroup_id=number).unit is None
    assert identify(tree.identities(), cgroup_id=0).unit is None


def test_a_cgroup_that_has_gone_is_looked_for_once(tree: Tree, monkeypatch) -> None:
    who = tree.identities()
    walks = []
    real = os.scandir
    monkeypatch.setattr(identities.os, "scandir", lambda path: walks.append(path) or real(path))
    for pid in range(50):
        assert identify(who, pid=pid, cgroup_id=2**40).unit is None
    assert len(walks) == 1


def test_where_cgroup2_is_mounted(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"
        "cgroup2 /run/a\\040b cgroup2 rw 0 0\n"
    )
    assert find_cgroup2(str(mounts)) == "/run/a b"
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert find_cgroup2(str(mounts)) is None


def test_what_is_remembered_is_bounded(tree: Tree, monkeypatch) -> None:
    for name in ("MAX_PROCESSES", "MAX_PATHS", "MAX_CGROUPS"):
        monkeypatch.setattr(identities, name, 10)
    who = tree.identities()
    for n in range(1, 200):
        who.learn(exec_of(b"/bin/x", pid=n, ino=n))
        identify(who, pid=n, exe_ino=n, cgroup_id=2**40 + n)
    tables = [who._exe_by_process, who._exe_by_inode, who._cgroups, who._identities]
    assert [len(table) for table in tables] == [10, 10, 10, 10]
