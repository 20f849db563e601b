"""Real stores for the tests: started on a free loopback port, and small namespaces in them."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import kelvin

START_SECONDS = 30.0
BLOCK_TOKENS = 4
BLOCK_BYTES = 8192


def kelvin_binary() -> str:
    """The `kelvin` binary: KELVIN_BIN, or the one that `make build` leaves in the cache, or PATH's."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    built = cache / "kelvin" / "target" / "release" / "kelvin"
    for candidate in (os.environ.get("KELVIN_BIN"), str(built), shutil.which("kelvin")):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise FileNotFoundError("no kelvin binary: build it (make build), or name it in KELVIN_BIN")


class Store:
    """A running `kelvin store`, and what it was started with."""

    def __init__(self, directory: Path, *flags: str, socket: bool = True) -> None:
        self.directory = directory
        self.flags = [*flags, *(["--socket", str(directory / "kelvin.sock")] if socket else [])]
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Store:
        command = [kelvin_binary(), "store", "--listen", f"127.0.0.1:{self.port}", *self.flags]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KELVIN_STORE_")}
        environment["RUST_LOG"] = "info"
        with (self.directory / "store.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        assert self.process.stdout is not None
        # One line, when it listens; nothing more is written there.
        if select.select([self.process.stdout], [], [], START_SECONDS)[0]:
            ready = self.process.stdout.readline()
            if ready:
                self.port = int(json.loads(ready)["listen"].rpartition(":")[2])
                return self
        self.stop()
        raise RuntimeError(f"the store did not start: {(self.directory / 'store.log').read_text()}")

    def signal(self, number: int) -> None:
        """Sends a signal; of SIGSTOP, returns when every thread has stopped."""
        assert self.process is not None
        self.process.send_signal(number)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while number == signal.SIGSTOP and not all(
            (task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir()
        ):
            time.sleep(0.001)

    def kill(self) -> None:
        """As a crash would, and waits for the end."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def fingerprint(**changes: str) -> kelvin.Fingerprint:
    """A fingerprint for tests; `changes` replace its fields."""
    fields = {
        "model_digest": "ab",
        "engine": "test",
        "engine_build": "1",
        "layout": "opaque",
        "dtype": "uint8",
    }
    return kelvin.Fingerprint(**{**fields, **changes})


def open_namespace(client: kelvin.Client, model: str, **changes: object) -> kelvin.Namespace:
    """A namespace of small blocks."""
    arguments: dict[str, object] = {
        "model": model,
        "fingerprint": fingerprint(),
        "block_tokens": BLOCK_TOKENS,
        "block_bytes": BLOCK_BYTES,
    }
    return client.namespace(**{**arguments, **changes})
