"""Real clusters, `kelvin up`: one of the toy engine, one of a real model, each for the whole run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

START_SECONDS = 60.0
STOP_SECONDS = 30.0


def cluster(model: str, name: str, *flags: str) -> Iterator[openai.OpenAI]:
    """A client of a cluster that serves `model` as `name`, while it runs."""
    with tempfile.TemporaryDirectory(prefix="kelvin-") as directory:
        command = [os.environ["KELVIN_BIN"], "up", "--json", "--model", model, "--model-name", name]
        command += ["--listen", "127.0.0.1:0", "--dram", "256MiB", "--run-dir", directory, *flags]
        with (Path(directory) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
            line = process.stdout.readline() if ready else b""
            assert line, (Path(directory) / "log").read_text()
            url = f"http://{json.loads(line)['listen']}/v1"
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)


@pytest.fixture(scope="session")
def toy() -> Iterator[openai.OpenAI]:
    """Says nothing of interest, at once; serves `toy`."""
    yield from cluster("toy", "toy", "--context", "4096")


@pytest.fixture(scope="session")
def smol() -> Iterator[openai.OpenAI]:
    """A real model, serves `smol`."""
    path = os.environ.get("KELVIN_TEST_MODEL")
    if not path:
        pytest.skip("KELVIN_TEST_MODEL names no GGUF file")
    # One thread: with more than idle cores the pool waits for itself.
    yield from cluster(os.path.expanduser(path), "smol", "--prefill", "0", "--threads", "1")
