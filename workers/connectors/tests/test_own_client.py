"""The example client that is made from the .proto alone, against a real store."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stores import Store

CLIENT = Path(__file__).parents[1] / "examples" / "own" / "client.py"
NEEDS = [name for name in ("grpc", "grpc_tools", "xxhash") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(NEEDS), reason=f"*** THE EXAMPLE CLIENT IS NOT TESTED: no {', '.join(NEEDS)} ***")
def test_blocks_are_stored_and_found(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "64MiB")

    def run() -> str:
        command = [sys.executable, str(CLIENT), f"127.0.0.1:{running.port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    assert "stored before: 0 of 4" in first
    assert first.count("BLOCK_STATUS_STORED") == 4
    assert "matched 4, loaded 4, equal: True" in first
    assert "stored before: 4 of 4" in run()
