"""The package and `make install`: what they put where, that it runs, that removal leaves nothing.

Tried on a copy of this machine that costs nothing: an overlay over its root directory, in a mount
namespace. What is left in the upper layer is what was left behind.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel("chroot", "dpkg", "dpkg-deb", "mount", "unshare")

ROOT = Path(__file__).resolve().parents[2]
ZSH = "/usr/share/zsh/vendor-completions"
ZSH_LOCAL = "/usr/local/share/zsh/site-functions"

# $1: a folder of the test; the script in it runs in the copy. Its changes end up in $1/up.tar.
IN_A_COPY = """
set -e
mkdir "$1/layers"
mount -t tmpfs none "$1/layers"
mkdir "$1/layers/up" "$1/layers/work" "$1/layers/root"
cp -R "$1/in" "$1/layers/up/in"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layers/up,workdir=$1/layers/work" \
    "$1/layers/root"
cd "$1/layers/root"
mount -t proc proc proc
mount --bind /dev dev
chroot . bash -ex /in/script
rm -rf in
cd ../up
find . -type f -o -type l -o -type d | while read -r path; do
    [[ -d $path && -d /$path ]] || echo "${path#.}"
done >"$1/left"
"""
# Of every installation, not of ours: dpkg's own notes, and copies of /etc/group before and after.
NOISE = ("/var/lib/dpkg/", "/var/log/", "/var/cache/man/", "/etc/group", "/etc/gshadow",
         "/etc/.pwd.lock", "/var/cache/ldconfig")  # fmt: skip


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, **more)


def in_a_copy(tmp_path, script, *files):
    """Run a script as root on a copy of this machine; its output and what it left there."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/script").write_text(script)
    for file in files:
        run("cp", "-RP", file, tmp_path / "in")
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc",
         "bash", "-c", IN_A_COPY, "copy", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    left = (tmp_path / "left").read_text().split("\n")
    return done.stdout + done.stderr, [path for path in left if path and not path.startswith(NOISE)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built") / "root"
    run("packaging/build", root, "/usr", ZSH)
    return root


@pytest.fixture(scope="module")
def built_local(tmp_path_factory):
    """As ``make install`` has it."""
    root = tmp_path_factory.mktemp("local") / "root"
    run("packaging/build", root, "/usr/local", ZSH_LOCAL)
    return root


@pytest.fixture(scope="module")
def package(built, tmp_path_factory):
    out = tmp_path_factory.mktemp("deb")
    run("packaging/deb", built, out, env={**os.environ, "CONMOND_DEB_COMPRESSION": "gzip"})
    (file,) = out.iterdir()
    return file


def listed(*kinds, prefix="/usr", zsh=ZSH):
    """Paths of packaging/files."""
    lines = [line.split() for line in (ROOT / "packaging/files").read_text().splitlines()]
    return {
        words[2].replace("PREFIX", prefix).replace("ZSH", zsh): words[0]
        for words in lines
        if words and words[0] in kinds
    }


def test_the_package_holds_what_is_listed_and_nothing_else(package):
    lines = run("dpkg-deb", "--contents", package).stdout.splitlines()
    found = {}
    for line in lines:
        mode, owner, _, _, _, name = line.split(maxsplit=5)
        assert owner == "root/root"
        assert mode[5] == mode[8] == "-" or mode[0] == "l", f"others may write {name}"
        found[name.split(" -> ")[0].removeprefix(".").rstrip("/")] = mode
    files = {path for path, mode in found.items() if mode[0] != "d"}
    ours = {path for path in files if path.startswith("/opt/conmond/")}
    wanted = set(listed("link", "file", "conf"))
    assert wanted <= files - ours <= wanted | set(listed("made"))
    assert {"/opt/conmond/bin/conmond", "/opt/conmond/bin/conmonctl"} < ours
    modules = [path for path in ours if path.endswith(".py")]
    assert any(path.endswith("/lib/monitor/bpf/event.h") for path in ours)
    assert sum(path.endswith(".pyc") for path in ours) == len(modules)
    control = run("dpkg-deb", "--field", package).stdout
    version = sys.version_info
    assert f"python3 (>= {version[0]}.{version[1]}), python3 (<< " in control
    assert "python3-bpfcc" in control


def test_nothing_of_this_machine_is_in_it(built):
    for path in built.rglob("*"):
        if path.is_file() and path.suffix in (".py", ".pyc", ".txt", ".json", ""):
            assert str(ROOT).encode() not in path.read_bytes(), path


def test_the_package_installs_runs_and_leaves_nothing(package, tmp_path):
    said, left = in_a_copy(
        tmp_path,
        f"""
        dpkg -i /in/{package.name}
        cd /tmp
        conmond --version
        conmonctl --help
        getent group conmond
        test -L /etc/systemd/system/multi-user.target.wants/conmond.service
        dpkg --verify conmond
        echo 'group = "staff"' >>/etc/conmond/config.toml
        mkdir -p /var/lib/conmond /var/cache/conmond
        touch /var/lib/conmond/history.db /var/cache/conmond/x.json
        conmond --config /etc/conmond/config.toml --version
        dpkg -i /in/{package.name}                      # once more, as an upgrade does
        dpkg -r conmond
        grep staff /etc/conmond/config.toml
        test -e /var/lib/conmond/history.db
        test ! -e /var/cache/conmond
        test ! -e /opt/conmond
        dpkg -P conmond
        ! getent group conmond
        """,
        package,
    )
    assert "conmond 0." in said
    assert left == []


def test_make_install_and_uninstall_leave_nothing(built_local, tmp_path):
    zsh = ZSH_LOCAL
    tree = tmp_path / "tree"
    for folder in ("packaging", "systemd"):
        shutil.copytree(ROOT / folder, tree / folder)
    _, left = in_a_copy(
        tmp_path,
        f"""
        rm -rf /var/lib/conmond /var/cache/conmond /etc/conmond
        /in/tree/packaging/install /in/root /usr/local {zsh}
        cd /tmp
        test "$(command -v conmond)" = /usr/local/bin/conmond
        conmond --version
        getent group conmond
        echo 'group = "staff"' >>/etc/conmond/config.toml
        /in/tree/packaging/install /in/root /usr/local {zsh} 2>&1 | grep 'kept /etc/conmond'
        mkdir /var/cache/conmond
        touch /var/lib/conmond/history.db
        systemctl enable conmond || true
        /in/tree/packaging/uninstall
        grep staff /etc/conmond/config.toml
        test -e /var/lib/conmond/history.db
        test ! -e /opt/conmond
        test ! -e /usr/local/bin/conmond
        /in/tree/packaging/install /in/root /usr/local {zsh}
        /in/tree/packaging/uninstall "" 1
        ! getent group conmond
        """,
        built_local,
        tree,
    )
    assert left == []


def test_an_install_below_another_root_touches_nothing_else(built, tmp_path):
    before = os.stat("/opt").st_mtime_ns
    run("packaging/install", built, "/usr", ZSH, tmp_path)
    assert os.stat("/opt").st_mtime_ns == before
    for path in listed("link", "file", "conf", "tree", "state"):
        assert (tmp_path / path[1:]).is_symlink() or (tmp_path / path[1:]).exists(), path
    assert stat.S_IMODE((tmp_path / "var/lib/conmond").stat().st_mode) == 0o700
    done = run(tmp_path / "opt/conmond/bin/conmond", "--version")
    assert done.stdout.startswith("conmond ")
    run("packaging/uninstall", tmp_path, "1")
    assert list(tmp_path.iterdir()) == []


def test_uninstall_removes_what_was_installed_below_every_prefix(built, built_local, tmp_path):
    dest, zsh = tmp_path / "dest", ZSH_LOCAL
    dest.mkdir()
    run("packaging/install", built_local, "/usr/local", zsh, dest)
    for _ in range(2):
        run("packaging/install", built, "/usr", ZSH, dest)
    for path in (*listed("link", "file", prefix="/usr/local", zsh=zsh), *listed("link", "file")):
        assert (dest / path[1:]).is_symlink() or (dest / path[1:]).exists(), path
    lines = (dest / "opt/conmond/installed").read_text().splitlines()
    assert len(set(lines)) == len(lines)
    run("packaging/uninstall", dest, "1")
    assert list(dest.iterdir()) == []


def test_the_command_takes_no_module_from_where_it_is_called(built, tmp_path):
    (tmp_path / "monitor").mkdir()
    for name in ("monitor/__init__.py", "argparse.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('taken from the current folder')")
    command = [built / "opt/conmond/bin/conmond", "--version"]
    env = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("conmond ")
