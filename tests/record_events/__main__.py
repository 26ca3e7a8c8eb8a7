"""``python -m tests.record_events`` (root): tests/data/events/*.json, the ring's own bytes.

To be run again when bpf/event.h changes; what the replay makes of them must stay the same.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monitor.decode import Kind
from monitor.kernel.kernel import Kernel
from monitor.kernel.libraries import Libraries
from tests.lab import world
from tests.lab.fleet import FLEET, Tools
from tests.lab.programs import SCRIPTS, Curl, NodeHttps, Wget, run
from tests.lab.servers import Behaviour
from tests.unit.test_replay import DATA, KEPT, replay

FLEET_NAMES = ("hey", "java", "aria2", "lynx", "erlang", "deno", "bun", "curl_cffi", "nss", "uv")
PLACES = (bytes(Path(__file__).resolve().parents[2]), tempfile.gettempdir().encode())
KINDS = {Kind.CONN, Kind.LOOKUP, Kind.HELLO, Kind.DNS, Kind.EXEC, Kind.EXIT}


@dataclass(frozen=True)
class Recorder:
    """What stays the same for all programs."""

    kernel: Kernel
    libraries: Libraries
    lab: world.Lab
    env: dict[str, str]

    def record(self, name: str, argv: Sequence[str], port: int, stdin: str | None = None) -> None:
        """Run one program and keep what was reported meanwhile."""
        kernel = self.kernel
        list(kernel.ring.read())
        run(self.lab.here, argv, stdin=stdin, env=self.env, timeout_s=40)
        raw: list[bytes] = []
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            self.libraries.handle()
            for data in kernel.ring.read():
                kind, size = struct.unpack_from("=II", data)
                # where this tree lies is nobody's business
                if kind in KINDS and not any(place in bytes(data) for place in PLACES):
                    raw.append(bytes(data[: size or len(data)]))
            time.sleep(0.01)
        rows = replay(raw, port)
        assert len(rows) == 1, (name, rows)
        text = {
            "program": name,
            "port": port,
            "events": [data.hex() for data in raw],
            "record": rows[0],
        }
        DATA.mkdir(exist_ok=True)
        (DATA / f"{name}.json").write_text(json.dumps(text, indent=0) + "\n", encoding="ascii")
        print(name, {key: rows[0][key] for key in KEPT[:6]}, file=sys.stderr)


def main() -> None:
    """Record all."""
    with tempfile.TemporaryDirectory() as folder, world.Lab(Path(folder)) as lab:
        os.chmod(folder, 0o755)
        tools = Tools(str(lab.ca_file), Path(folder))
        delays = {"hello_delay_s": 0.02, "response_delay_s": 0.03}
        secure = lab.serve(Behaviour(tls=lab.tls("1.3"), **delays), world.FAR4)
        plain = lab.serve(Behaviour(**delays), world.FAR4)
        env = {"HOME": folder, "SSL_CERT_FILE": tools.ca, "NODE_EXTRA_CA_CERTS": tools.ca}
        server = lab.there.popen(["nghttpd", "-d", folder, "--no-tls", "-a", world.FAR4, "8702"])
        quic = lab.there.popen(
            [sys.executable, str(SCRIPTS / "quic_server.py"), world.FAR4, "4433",
             str(lab.trusted.cert), str(lab.trusted.key)]
        )  # fmt: skip
        assert quic.stdout is not None
        quic.stdout.readline()
        kernel = Kernel.open()
        libraries = Libraries(kernel.loaded)
        libraries.start()
        try:
            one = Recorder(kernel, libraries, lab, env).record

            def host(name: str) -> str:
                return lab.name(name.replace("_", "-"), world.FAR4, delay_s=0.01)

            for program in (Curl(lab), Wget(lab), NodeHttps(lab)):
                argv = program.argv(host(program.name), secure.port, "1.3")
                one(program.name, argv, secure.port)
            for client in (client for client in FLEET if client.name in FLEET_NAMES):
                url = f"https://{host(client.name)}:{secure.port}/"
                one(client.name, client.argv(url, tools), secure.port, client.stdin)
            one("curl-http", Curl(lab).argv(host("curl-http"), plain.port), plain.port)
            url = f"http://{host('curl-h2c')}:8702/none"
            one("curl-h2c", Curl(lab).to_urls(url, options=["--http2-prior-knowledge"]), 8702)
            one("nghttp-h2c", ["nghttp", "-n", f"http://{host('nghttp')}:8702/none"], 8702)
            script = str(SCRIPTS / "quic_get.py")
            argv = [sys.executable, script, host("aioquic"), "4433", tools.ca]
            one("aioquic", argv, 4433)
        finally:
            libraries.close()
            kernel.close()
            for process in (server, quic):
                process.kill()
                process.communicate()


if __name__ == "__main__":
    main()
