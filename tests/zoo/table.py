"""Which species there are: how each is built and run, and what it must say."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["BUILDS", "SPECIES", "Build", "Species"]

SOURCES = Path(__file__).parent / "species"
NAME = "name.zoo.test 0 127.0.0.1\n"
PLAIN = f"{NAME}name.nowhere.invalid -2 \n127.0.0.1 0 127.0.0.1\nslow.zoo.test 0 127.0.0.1\n"
SUM = "sum 2623500\n"
TALK = "handshake 1 ok\n"
COROUTINES = "0: 1\n1: 1\n2: 1\nall done\n"


@dataclass(frozen=True, kw_only=True)
class Build:
    """One file of the zoo.

    Args:
        argv: a compiler's command line; SOURCE and OUT stand for the files.
        lacks: why it cannot be built here, or None.
    """

    source: str
    argv: tuple[str, ...]
    lacks: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Species:
    """One kind of program that could notice.

    Args:
        run: its command line; BUILT is the folder of what was built, CERT and KEY are the server's
            files.
        stdout: what it must print.
        probes: the functions in which a probe must have been, by the word of the program itself,
            or, where it has none (``mute``), of another that maps the same library.
        builds: what must be built for it.
        code: its exit code.
        mute: it does not say itself whether it was probed.
        needs: programs that must be installed.
        apart: runs beside no other, since conmond takes all probes out meanwhile.
        notices: how it notices a probe all the same; docs/harmless.md says so too.
        lacks: why it cannot run here, or None.
    """

    name: str
    run: tuple[str, ...]
    stdout: str
    probes: frozenset[str]
    builds: tuple[str, ...] = ()
    code: int = 0
    mute: bool = False
    needs: tuple[str, ...] = ()
    notices: str | None = None
    apart: bool = False
    lacks: Callable[[], str | None] = field(default=lambda: None)


def _compiles(*argv: str, code: str = "int main(void){return 0;}\n") -> Callable[[], str | None]:
    def lacks() -> str | None:
        if shutil.which(argv[0]) is None:
            return f"{argv[0]} is not installed"
        done = subprocess.run(
            [*argv, "-x", "c", "-", "-o", "/dev/null"],
            input=code,
            capture_output=True,
            text=True,
            check=False,
        )
        return None if not done.returncode else f"{' '.join(argv)} does not work here"

    return lacks


def _no_shadow_stack() -> str | None:
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if flags and "user_shstk" in flags[1].split():
        return None
    return "needs a CPU and a kernel with shadow stacks for programs (user_shstk)"


def _not_x86() -> str | None:
    machine = platform.machine()
    return None if machine == "x86_64" else f"is written for x86_64, and this is {machine}"


C = ("gcc", "-w", "-O1", "-g", "SOURCE", "-o", "OUT")
CXX = ("g++", "-w", "-O1", "-g", "SOURCE", "-o", "OUT")
SSL = ("-lssl", "-lcrypto")
LIBRARY = ("-shared", "-fPIC")

BUILDS: dict[str, Build] = {
    "coroutine_ucontext": Build(source="coroutine_ucontext.c", argv=(*C, *SSL)),
    "coroutine_gnutls": Build(source="coroutine_gnutls.c", argv=(*C, "-lgnutls")),
    "coroutine_boost": Build(
        source="coroutine_boost.cc", argv=(*CXX, *SSL, "-lboost_context"),
    ),
    "coroutine_crystal": Build(
        source="coroutine_crystal.cr",
        argv=("crystal", "build", "--no-color", "--threads", "1", "SOURCE", "-o", "OUT"),
    ),
    "coroutine_d": Build(
        source="coroutine_d.d",
        argv=("ldc2", "SOURCE", "-of=OUT", "-od=OUT.o", "-L-lssl", "-L-lcrypto")
    ),
    "throw_openssl": Build(source="throw_openssl.cc", argv=(*CXX, *SSL)),
    "throw_gnutls": Build(source="throw_gnutls.cc", argv=(*CXX, "-lgnutls")),
    "longjmp_callback": Build(source="longjmp_callback.c", argv=(*C, *SSL)),
    "longjmp_alarm": Build(source="longjmp_alarm.c", argv=C),
    "setcontext_escape": Build(source="setcontext_escape.c", argv=(*C, *SSL)),
    "cancel_lookup": Build(source="cancel_lookup.cc", argv=CXX),
    "cancel_hostbyname": Build(source="cancel_hostbyname.c", argv=(*C, "-fexceptions", *SSL)),
    "signal_onstack": Build(source="signal_onstack.c", argv=(*C, *SSL)),
    "vfork_spawn": Build(source="vfork_spawn.c", argv=(*C, *SSL)),
    "exec_inside": Build(source="exec_inside.c", argv=(*C, *SSL)),
    "inside": Build(source="inside.c",
        argv=("gcc", "-w", "-O0", "-g", "SOURCE", "-o", "OUT", *SSL)),
    "single_stepped": Build(source="single_stepped.c", argv=C, lacks=_not_x86),
    "sanitized": Build(source="sanitized.cc", argv=(*CXX, "-fsanitize=address", *SSL)),
    "seccomp_strict": Build(source="seccomp_strict.c", argv=C, lacks=_not_x86),
    "shadow_stack": Build(
        source="shadow_stack.c", argv=(*C, "-fcf-protection", *SSL), lacks=_no_shadow_stack
    ),
    "preload_lib.so": Build(source="preload_lib.c", argv=(*C, "-shared", "-fPIC", "-ldl")),
    "dlclose_inside": Build(source="dlclose_inside.c", argv=C),
    "plain": Build(source="plain.c", argv=C),
    "plain-static": Build(source="plain.c", argv=(*C, "-static")),
    "plain-static-pie": Build(source="plain.c", argv=(*C, "-static-pie")),
    "plain-no-pie": Build(source="plain.c", argv=(*C, "-no-pie", "-fno-pie", "-fno-plt")),
    "plain-m32": Build(source="plain.c", argv=(*C, "-m32"), lacks=_compiles("gcc", "-m32")),
    "plain-musl": Build(source="plain.c", argv=("musl-gcc", *C[1:])),
    "plain-musl-static": Build(source="plain.c", argv=("musl-gcc", *C[1:], "-static")),
    "plain-asan": Build(source="plain.c", argv=(*C, "-fsanitize=address")),
    "numeric": Build(source="numeric.c", argv=C),
    "libbased.so": Build(
        source="based_lib.c",
        argv=(*C, "-shared", "-fPIC", "-Wl,-soname,libbased.so", "-Wl,-Ttext-segment=0x3a000000"),
    ),
    "based": Build(source="based.c", argv=(*C, "-LBUILT", "-lbased")),
    "two_copies": Build(source="two_copies.c", argv=C),
    "libpatched_text.so": Build(
        source="patched_text.c", argv=(*C, "-DLIBRARY", *LIBRARY), lacks=_not_x86
    ),
    "patched_text": Build(
        source="patched_text.c", argv=(*C, "-Wl,-z,now", "-LBUILT", "-lpatched_text"),
        lacks=_not_x86,
    ),
    "huge_text": Build(source="huge_text.c", argv=C),
    "confined": Build(source="confined.c", argv=C),
    "other_probe": Build(source="other_probe.c", argv=C),
    "trap_handler": Build(source="trap_handler.c", argv=(*C, "-mno-red-zone"), lacks=_not_x86),
    "replaced-old": Build(source="replaced.c", argv=(*C, "-DOLD", "-DPROGRAM"), lacks=_not_x86),
    "replaced-new": Build(source="replaced.c", argv=(*C, "-DPROGRAM"), lacks=_not_x86),
    "libreplaced-old.so": Build(
        source="replaced.c", argv=(*C, "-DOLD", *LIBRARY, "-Wl,-soname,libreplaced.so"),
        lacks=_not_x86,
    ),
    "libreplaced-new.so": Build(
        source="replaced.c", argv=(*C, *LIBRARY, "-Wl,-soname,libreplaced.so"), lacks=_not_x86
    ),
    "acting": Build(source="acting.c", argv=(*C, "-LBUILT", "-l:libreplaced-new.so")),
    "many_threads": Build(source="many_threads.c", argv=C),
    "no_room": Build(source="no_room.c", argv=C),
    "write_in_place": Build(source="write_in_place.c", argv=C),
    "waiting": Build(source="waiting.c", argv=C),
    "own_text": Build(source="own_text.c", argv=C),
    "moved_text": Build(source="moved_text.c", argv=C),
    "libhooked.so": Build(
        source="hooked.c", argv=(*C, "-DLIBRARY", *LIBRARY), lacks=_not_x86
    ),
    "hooked": Build(
        source="hooked.c", argv=(*C, "-Wl,-z,now", "-LBUILT", "-lhooked"), lacks=_not_x86
    ),
    "Threads.class": Build(source="threads.java", argv=("javac", "-d", "BUILT", "SOURCE")),
}  # fmt: skip
# what must be there before what
FIRST = ("libbased.so", "libpatched_text.so", "libhooked.so", "libreplaced-new.so")

LOOKUP = frozenset({"getaddrinfo"})
OPENSSL = frozenset({"SSL_do_handshake"})
GNUTLS = frozenset({"gnutls_handshake"})
UNPROBED: frozenset[str] = frozenset()  # it is not probed


def _binary(name: str, stdout: str, probes: frozenset[str], **more: object) -> Species:
    return Species(
        name=name,
        run=(f"BUILT/{name}",),
        stdout=stdout,
        probes=probes,
        builds=(name,),
        **more,  # type: ignore[arg-type]
    )


def _script(
    name: str, stdout: str, probes: frozenset[str], *builds: str, **more: object
) -> Species:
    return Species(
        name=name,
        run=("bash", str(SOURCES / f"{name}.sh")),
        stdout=stdout,
        probes=probes,
        builds=builds,
        **more,  # type: ignore[arg-type]
    )


# A program with a library beside it, in which the probed function is.
def _with_own(name: str, stdout: str, library: str, **more: object) -> Species:
    return Species(
        name=name,
        run=("env", "LD_LIBRARY_PATH=BUILT", f"BUILT/{name}"),
        stdout=stdout,
        probes=LOOKUP,
        builds=(name, library),
        **more,  # type: ignore[arg-type]
    )


REPLACED = ("libreplaced-old.so", "libreplaced-new.so", "acting")

SPECIES: tuple[Species, ...] = (
    # Stacks that are left in another order than they were entered
    _binary("coroutine_ucontext", COROUTINES, OPENSSL),
    _binary("coroutine_gnutls", "0: 0\n1: 0\n2: 0\nall done\n", GNUTLS),
    _binary("coroutine_boost", COROUTINES, OPENSSL),
    _binary(
        "coroutine_crystal", '[{4430, "ok"}, {4431, "ok"}, {4433, "ok"}]\n', OPENSSL | LOOKUP,
        mute=True,
    ),
    _binary("coroutine_d", COROUTINES, OPENSSL, mute=True),
    Species(
        name="coroutine_gevent",
        run=(sys.executable, str(SOURCES / "coroutine_gevent.py"), "CERT", "KEY"),
        stdout="[('first', b'ok'), ('second', b'ok'), ('third', b'ok')]\n",
        probes=OPENSSL,
    ),
    # Calls that are left otherwise than by returning
    _binary("throw_openssl", "caught 80 released 80\n", OPENSSL),
    _binary("throw_gnutls", "caught 20\n", GNUTLS),
    _binary("longjmp_callback", f"{TALK}jumped 80\n", OPENSSL),
    _binary("longjmp_alarm", f"{NAME}left 4\n", LOOKUP),
    _binary("setcontext_escape", f"{TALK}left 70\n", OPENSSL),
    _binary("cancel_lookup", "released 4\n", LOOKUP),
    _binary("cancel_hostbyname", "released 2\n", OPENSSL | {"gethostbyname_r"}),
    _binary("exec_inside", f"{TALK}{NAME}", OPENSSL),
    # Signals and children inside a call
    _binary("signal_onstack", (NAME + TALK) * 5 + "signals came, without main 0\n",
        OPENSSL | LOOKUP,),
    _binary(
        "vfork_spawn",
        "vfork 7\nspawn 0\nlookup in vfork 10\nchild 23, parent 1\n",
        OPENSSL | LOOKUP,
    ),
    _script("stopped", f"{PLAIN}exit 0\n", LOOKUP, "plain"),
    # Debuggers and other tools beside conmond
    _script(
        "debugged",
        "getaddrinfo\nzoo_look_up\nmain\nback in zoo_look_up\n"
        f"inside_handshake\nzoo_talk\nmain\n{NAME}{TALK}[Inferior exited normally]\n",
        OPENSSL | LOOKUP, "inside", needs=("gdb",), mute=True,
    ),
    _script(
        "traced", f"{NAME}{TALK}exit 0\n      1 exit_group\n", OPENSSL | LOOKUP, "inside",
        needs=("strace",),
    ),
    _binary("single_stepped", "ended 42, entered once, steps many\n", LOOKUP),
    _script(
        "valgrinded", f"{NAME}{TALK}exit 0\n", UNPROBED, "inside", needs=("valgrind",), apart=True,
        notices="probes may not be out yet when a translator comes to them: 1 of 6 rounds",
    ),
    _binary("other_probe", "counted 300\n", LOOKUP),
    _binary("trap_handler", "5 breakpoints, many steps, 0 failed\n", LOOKUP),
    _binary("many_threads", "800 good, child 5\n", LOOKUP),
    # Compilers, sandboxes and limits
    Species(
        name="sanitized",
        # what exceptions leave behind in OpenSSL is no leak of ours
        run=("env", "ASAN_OPTIONS=detect_leaks=0", "BUILT/sanitized"),
        stdout=f"{NAME}{TALK}caught 10\n",
        probes=OPENSSL,
        builds=("sanitized",),
    ),
    _binary("plain-asan", PLAIN, LOOKUP, mute=True),
    _binary("seccomp_strict", NAME * 5 + "filter 0\nstrict 0\n", LOOKUP),
    _binary("shadow_stack", "warm.zoo.test 0 127.0.0.1\n" + TALK + NAME + TALK, LOOKUP),
    _binary("confined", f"0\n0\n0\n{NAME}", LOOKUP),
    _script("shells", PLAIN * 3, LOOKUP, "plain"),
    # Other ways to be linked and loaded
    Species(
        name="preloaded",
        run=("env", "LD_PRELOAD=BUILT/preload_lib.so", "BUILT/inside"),
        stdout=f"{NAME}{TALK}wrapped 1 lookups, 1 handshakes\n",
        probes=OPENSSL | LOOKUP,
        builds=("inside", "preload_lib.so"),
    ),
    _binary("dlclose_inside", "12 of 12\n", OPENSSL),
    _binary("plain", PLAIN, LOOKUP),
    _binary("plain-static", PLAIN, UNPROBED),
    _binary("plain-static-pie", PLAIN, UNPROBED),
    _binary("plain-no-pie", PLAIN, LOOKUP),
    _binary("plain-m32", PLAIN, UNPROBED),
    _binary("plain-musl", PLAIN, LOOKUP),
    _binary("plain-musl-static", PLAIN, UNPROBED),
    _with_own("based", SUM, "libbased.so"),
    _binary("two_copies", "SSL_do_handshake 1\nmemfd 1\nSSL_do_handshake 1\n", OPENSSL),
    _with_own("patched_text", "sum 141208\n", "libpatched_text.so"),
    _binary("huge_text", NAME * 3, LOOKUP),
    # Files, mounts, groups and namespaces that go. What was overwritten a moment ago is not probed:
    # that is how it is kept from harm.
    _script(
        "overwritten", "old ok\nold ok\nnew ok\nexit 0\nold ok\nexit 0\n" * 2, frozenset(),
        "replaced-old", "replaced-new", *REPLACED,
    ),
    _script(
        "upgraded", f"{SUM}{SUM}exit 0\nexit 0\n{SUM}{SUM}", frozenset(), "based", "libbased.so",
    ),
    _script("unmounted", f"{PLAIN}exit 0\nunmounted\n", LOOKUP, "plain", mute=True),
    _script(
        "taken_down",
        f"{NAME}{TALK}no group\n0 111\nno namespace\n{PLAIN}exit 0\nno group\n",
        OPENSSL | LOOKUP, "inside", "plain", "numeric",
    ),
    _script(
        "overwritten_otherwise",
        "old ok\nnew ok\npiece 0\nold ok\nnew ok\nmapping 0\nold ok\nnew ok\nlink 0\n", frozenset(),
        *REPLACED, "write_in_place",
    ),
    _script("overlaid", f"{PLAIN}exit 0\n{PLAIN}exit 0\nunmounted\n", LOOKUP, "plain", mute=True),
    _script("init_killed", f"killed\n{PLAIN}", LOOKUP, "plain", "waiting"),
    # Run times of other languages
    _script("golang", "[4] malformed HTTP response\n", LOOKUP, mute=True, needs=("hey",)),
    Species(
        name="java",
        run=("JAVA", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp", "BUILT", "Threads"),
        stdout="found 36\n",
        probes=LOOKUP,
        builds=("Threads.class",),
        mute=True,
    ),
    Species(
        name="libuv",
        run=("node", str(SOURCES / "libuv.mjs")),
        stdout=" ".join(["127.0.0.1"] * 8) + "\n4433 ok 4431 ok 4430 ok\n",
        probes=LOOKUP,
        mute=True,
        needs=("node",),
    ),
    # What can be noticed
    _binary(
        "no_room", "ended 1\n", LOOKUP,
        notices="no address is left for the page on which the kernel steps over a probe",
    ),
    _binary(
        "own_text", "0 bytes differ\n", LOOKUP, notices="text in memory is compared with its file",
    ),
    _binary("moved_text", NAME, LOOKUP, notices="text is copied, with the breakpoint in it"),
    _with_own(
        "hooked", "hooked 100, sum 5650\n", "libhooked.so",
        notices="a function's first bytes are copied",
    ),
)  # fmt: skip
