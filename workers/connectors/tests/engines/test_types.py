"""The connectors' types, checked against the real vLLM and transformers, and against TensorRT-LLM's stand-in."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = ["-p", "kelvin.trtllm", "-p", "kelvin.vllm", "-p", "kelvin.hf", "-m", "kelvin", "-m", "trtllm_harness"]
CHECK_SECONDS = 600.0


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="*** TYPES ARE NOT CHECKED: no mypy ***")
def test_types_are_right() -> None:
    pytest.importorskip("vllm")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kelvin" / "mypy"
    sources = ["python", "tests", "tests/engines", "tests/engines/stand_in"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(cache), *CHECKED],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": ":".join(sources)},
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
