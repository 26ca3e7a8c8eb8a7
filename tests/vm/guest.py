"""What is done inside the virtual machine: conmond as a service, from its package to its removal.

Standard library only: it runs on the guest's Python, as root. Each step writes one entry of
/results/checks.json: its name, what was seen, and whether it is as it should be. Started anew
after each reboot, it goes on where it left off.
"""

import grp
import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path("/var/tmp/results")
STAGE = RESULTS / "stage"
CHECKS = RESULTS / "checks.json"
PAYLOAD = Path("/run/payload")
WAIT_S = 90.0  # emulated: everything takes ten times as long


def sh(command, *, timeout=240):
    """Run a shell command; (exit code, output with stderr)."""
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
             "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def note(name, ok, seen=None):
    """Write one check down at once, since the machine may not live to see the next."""
    checks = json.loads(CHECKS.read_text()) if CHECKS.exists() else []
    checks.append({"name": name, "ok": bool(ok), "seen": seen})
    CHECKS.write_text(json.dumps(checks, indent=1))
    print(f"{'ok ' if ok else 'NOT'} {name}", flush=True)


def wait_for(what, seconds=WAIT_S):
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found or time.monotonic() > end:
            return found
        time.sleep(0.3)


def main_pid():
    _, out = sh("systemctl show -P MainPID conmond")
    return int(out.strip() or 0)


def ready():
    code, _ = sh("systemctl is-active --quiet conmond")
    return code == 0 and main_pid()


def loaded_programs():
    """Names of BPF programs of ours that are in the kernel."""
    _, out = sh("bpftool -j prog list")
    try:
        names = {program.get("name", "") for program in json.loads(out or "[]")}
    except ValueError:
        return [out[:200]]
    return sorted(names & {"sock_set_state", "packet_ingress", "packet_egress", "process_exec"})


def conmonctl(arguments, user=None):
    who = f"setpriv --reuid={user} --regid={user} --init-groups " if user else ""
    code, out = sh(f"{who}conmonctl {arguments}")
    return code, out


def rows(arguments, user=None):
    code, out = conmonctl(arguments, user)
    return json.loads(out)["processes"] if code == 0 else [{"error": out[-300:]}]


def record_of(marker):
    """The newest record whose request went to this port or host."""
    code, out = sh(
        "curl -s --unix-socket /run/conmond/conmond.sock 'http://c/v1/records?limit=200'"
    )
    if code:
        return None
    found = [r for r in json.loads(out)["records"] if marker(r)]
    return found[0] if found else None


# -- stage 1: a fresh machine ---------------------------------------------------------------------


def install():
    RESULTS.mkdir(parents=True, exist_ok=True)
    sh(f"tar -xf {PAYLOAD}/modules.tar -C / && depmod -a")
    code, out = sh(f"dpkg -i {PAYLOAD}/conmond.deb", timeout=400)
    note("the package installs", code == 0, out[-1500:])
    code, out = sh("systemctl is-enabled conmond")
    note("the service is enabled", code == 0, out)
    code, out = sh(
        "useradd --create-home stranger && useradd --create-home member && "
        "usermod -aG conmond member"
    )
    note("users for the tests", code == 0, out)


# -- stage 2: it came up at boot ------------------------------------------------------------------


def serve():
    """HTTP on 8080 and HTTPS on 8443, which answer after 50 ms; until this process ends."""
    sh(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        "-subj /CN=web.test -addext subjectAltName=DNS:web.test "
        "-addext keyUsage=critical,digitalSignature,keyCertSign "
        "-keyout /run/key.pem -out /run/cert.pem"
    )
    server = subprocess.Popen([sys.executable, str(PAYLOAD / "guest_server.py")])
    wait_for(lambda: sh("curl -sko /dev/null https://127.0.0.1:8443/")[0] == 0, 30)
    return server


def curls():
    timers = "%{time_namelookup} %{time_connect} %{time_appconnect} %{time_starttransfer}"
    code, out = sh(
        f"curl -s --cacert /run/cert.pem -o /dev/null -w '{timers}' https://web.test:8443/"
    )
    _, connect, tls, first = (float(text) * 1e6 for text in out.split()[-4:])
    record = wait_for(
        lambda: record_of(lambda r: r["host"] == "web.test" and r["rport"] == 8443), 20
    )
    note("curl's HTTPS connection has a record", record is not None, [code, out, record])
    if record is None:
        return
    note(
        "its name and addresses were seen",
        record["dns"] and record["dns_source"] == "getaddrinfo",
        record,
    )
    tls_record = record["tls"] or {}
    note("its TLS was timed in the library", tls_record.get("source") == "openssl", tls_record)
    note(
        "its first response came after the 50 ms that the server waits",
        record["txn_resp_us"] and record["txn_resp_us"] >= 50_000,
        record["txn_resp_us"],
    )
    # curl's figures hold its own work too: ours are within them, and most of them
    note(
        "TLS agrees with curl",
        record["tls_us"] and 0.3 * (tls - connect) <= record["tls_us"] <= (tls - connect) * 1.1,
        [record["tls_us"], tls - connect],
    )
    note(
        "the response agrees with curl",
        record["txn_resp_us"] and abs(record["txn_resp_us"] - (first - tls)) < 0.3 * (first - tls),
        [record["txn_resp_us"], first - tls],
    )
    note("bytes were counted", record["tcp"]["bytes_received"] > 100, record["tcp"])
    sh("curl -s http://127.0.0.1:8080/ -o /dev/null")
    record = wait_for(lambda: record_of(lambda r: r["rport"] == 8080), 20)
    note(
        "HTTP's status was read",
        record and (record["prot_specific"] or {}).get("resp") == 200,
        record,
    )
    sh("curl -s http://127.0.0.1:9/ -o /dev/null")
    record = wait_for(lambda: record_of(lambda r: r["rport"] == 9), 20)
    note(
        "a refused connection is a failed record",
        record and record["error"] == "ECONNREFUSED" and record["state"] == "failed",
        record,
    )
    sh("curl -s http://nowhere.invalid/ -o /dev/null")
    record = wait_for(lambda: record_of(lambda r: r["host"] == "nowhere.invalid"), 20)
    note("a failed lookup is a record", record and record["dns_disp"] in (2, 3), record)
    sh("wget -q --ca-certificate=/run/cert.pem -O /dev/null https://web.test:8443/wget")
    record = wait_for(lambda: record_of(lambda r: r["comm"] == "wget"), 20)
    note(
        "GnuTLS was timed in the library",
        record and (record["tls"] or {}).get("source") == "gnutls",
        record,
    )


def deep():
    script = (
        "import http.client, ssl, time\n"
        "kept = http.client.HTTPSConnection('web.test', 8443,\n"
        "    context=ssl.create_default_context(cafile='/run/cert.pem'))\n"
        "kept.connect()\n"
        "time.sleep(15)\n"
        "kept.request('GET', '/')\n"
        "kept.getresponse().read()\n"
        "time.sleep(2)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", script])
    time.sleep(4)
    code, out = conmonctl(f"deep --pid {client.pid} --for 60s --json")
    client.wait(60)
    try:
        told = [json.loads(line) for line in out.splitlines()]
    except ValueError:
        told = []
    turns = [item for item in told if item["kind"] == "turn"]
    note(
        "deep reads what a program says inside TLS, and ends with it",
        code == 0
        and len(turns) == 1
        and (turns[0]["prot_specific"] or {}).get("resp") == 200
        and turns[0]["id"]
        and told[-1].get("why") == "process",
        out[-2500:],
    )


def who_sees_what():
    sh(
        "setpriv --reuid=stranger --regid=stranger --init-groups "
        "curl -s http://127.0.0.1:8080/ -o /dev/null"
    )
    wait_for(lambda: len(rows("ps --json --uid 0")) > 0, 10)
    own = pwd.getpwnam("stranger").pw_uid
    seen = wait_for(lambda: (r := rows("ps --json", "stranger")) and r)
    note(
        "a stranger sees own connections alone",
        seen and all(row.get("uid") == own for row in seen),
        seen,
    )
    seen = rows("ps --json", "member")
    note(
        "a member of the group sees root's and the stranger's",
        {0, own} <= {row.get("uid") for row in seen},
        seen,
    )
    seen = rows("ps --json")
    note("curl is in conmonctl ps", any(row.get("comm") == "curl" for row in seen), seen)
    code, out = conmonctl("ps")
    note("and in its table", code == 0 and "curl" in out, out)
    code, out = conmonctl("doctor")
    (RESULTS / "doctor.txt").write_text(out)
    code, out = conmonctl("doctor --json")
    note("the doctor finds nothing missing", code == 0, json.loads(out)["unseen"] if out else None)


def security():
    _, out = sh("systemd-analyze security --no-pager conmond")
    (RESULTS / "security.txt").write_text(out)
    score = out.strip().splitlines()[-1]
    note("systemd-analyze security says OK", " OK " in score, score)
    _, out = sh("systemctl show conmond -P MemoryCurrent; systemctl show conmond -P MemoryHigh")
    current, high = (int(word) for word in out.split()[:2])
    note("memory is under a third of MemoryHigh", 0 < current < high / 3, out.split())


def comes_back():
    before = main_pid()
    programs = loaded_programs()
    note("programs are in the kernel", len(programs) == 4, programs)
    sh("systemctl kill -s KILL conmond")
    after = wait_for(lambda: (pid := ready()) and pid != before and pid)
    note("after SIGKILL it is back", after, [before, after])
    sh(
        "mkdir -p /etc/systemd/system/conmond.service.d && "
        "printf '[Service]\\nWatchdogSec=5s\\n' >/etc/systemd/system/conmond.service.d/w.conf && "
        "systemctl daemon-reload && systemctl restart conmond",
        timeout=400,
    )
    before = wait_for(ready)
    time.sleep(12)
    note("a healthy one outlives two watchdog periods", main_pid() == before, main_pid())
    os.kill(before, 19)  # SIGSTOP: the ring is not read any more
    after = wait_for(lambda: (pid := ready()) and pid != before and pid)
    note("the watchdog brings a stuck one back", after, [before, after])
    _, out = sh("journalctl -u conmond --no-pager -o cat")
    (RESULTS / "journal.txt").write_text(out)
    note("the watchdog was the reason", "watchdog" in out.lower(), out[-600:])
    sh("rm -r /etc/systemd/system/conmond.service.d; systemctl daemon-reload")
    sh("systemctl kill -s KILL conmond; systemctl stop conmond")
    note(
        "nothing stays in the kernel",
        wait_for(lambda: not loaded_programs(), 20),
        loaded_programs(),
    )


def remove():
    sh("systemctl start conmond", timeout=400)
    code, out = sh("dpkg -r conmond", timeout=400)
    note("the package is removed", code == 0, out[-600:])
    note(
        "removal stops the service",
        not main_pid() and not wait_for(loaded_programs, 2),
        loaded_programs(),
    )
    code, out = sh("dpkg -P conmond", timeout=400)
    left = [
        path
        for path in ("/opt/conmond", "/etc/conmond", "/var/lib/conmond", "/var/cache/conmond",
                     "/run/conmond", "/usr/bin/conmond", "/usr/bin/conmonctl",
                     "/usr/lib/systemd/system/conmond.service",
                     "/etc/systemd/system/multi-user.target.wants/conmond.service")
        if os.path.lexists(path)
    ]  # fmt: skip
    note("a purge leaves nothing", code == 0 and not left, [left, out[-600:]])
    groups = [group.gr_name for group in grp.getgrall()]
    note("the group is gone", "conmond" not in groups, None)


def finish():
    sh("journalctl -b --no-pager -o short-monotonic | tail -n 400 >/var/tmp/results/boot.txt")
    sh("tar -C /var/tmp/results -cf /dev/nvme0n1p3 . && sync")
    sh("systemctl poweroff --force")


def main():
    stage = STAGE.read_text() if STAGE.exists() else "install"
    try:
        if stage == "install":
            install()
            STAGE.write_text("booted")
            sh("sync; systemctl reboot --force")
            return
        note("kernel", True, os.uname().release)
        up = wait_for(ready, 180)
        note("the service came up at boot", up, sh("systemctl status conmond")[1][-1500:])
        if not up:
            _, out = sh("journalctl -u conmond --no-pager -o cat | tail -n 60; dmesg | tail -n 40")
            (RESULTS / "journal.txt").write_text(out)
            note("so nothing else was tried", False, out[-3000:])
            finish()
            return
        server = serve()
        for part in (curls, deep, who_sees_what, security, comes_back, remove):
            try:
                part()
            except Exception as exc:  # one part's end is not the others'
                note(f"{part.__name__} ran to its end", False, repr(exc))
        server.kill()
    except Exception as exc:
        note("the guest ran to its end", False, repr(exc))
    finish()


if __name__ == "__main__":
    main()
