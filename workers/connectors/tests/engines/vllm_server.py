"""A real vLLM on the CPU, served over HTTP on a free loopback port."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 300.0
ANSWER_SECONDS = 120.0

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_SERVER_DEV_MODE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Answer:
    """One completion."""

    tokens: tuple[int, ...]
    cached_tokens: int
    first_token_seconds: float


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """vLLM's OpenAI server, with or without the connector."""

    def __init__(self, model: Path, log: Path, *, dtype: str = "float32", block_size: int = 32) -> None:
        self.model = model
        self.log = log
        self.flags = ["--dtype", dtype, "--block-size", str(block_size), "--max-model-len", "4096"]
        self.process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def start(self, store: str | None, role: str = "kv_both", **settings: Any) -> Server:
        """Starts it, with the store at this URL, and waits until it serves."""
        if store is None:
            return self.start_with(None)
        return self.start_with(
            {
                "kv_connector": "KelvinConnector",
                "kv_connector_module_path": "kelvin.vllm",
                "kv_role": role,
                "kv_connector_extra_config": {"url": store, **settings},
            }
        )

    def start_with(self, transfer: dict[str, Any] | None) -> Server:
        """Starts it with vLLM's `--kv-transfer-config`, and waits until it serves."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--served-model-name", "smol", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--max-num-seqs", "8", "--enforce-eager", "--enable-prompt-tokens-details", *self.flags]
        if transfer is not None:
            command += ["--kv-transfer-config", json.dumps(transfer)]
        with self.log.open("ab") as log:
            # A session of its own, so that its engine processes end with it.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"vLLM did not start: {self.log.read_text()[-4000:]}")
            try:
                self._request("GET", "/health")
                return self
            except OSError:
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"vLLM did not start in time: {self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """Ends it and the processes it started."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(30)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {text[:500]!r}")
        return text

    def forget(self, connectors_too: bool = False) -> None:
        """Drops vLLM's own prefix cache, and what its connector has in this process."""
        self._request("POST", f"/reset_prefix_cache?reset_external={str(connectors_too).lower()}")

    def answered(self) -> float:
        """Requests it has answered, all reasons to end together."""
        lines = self._request("GET", "/metrics").decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:request_success_total{"))

    def complete(self, prompt: list[int], tokens: int = 8) -> Answer:
        """Greedy completion of token ids, streamed."""
        return complete_at(self.port, prompt, tokens)


def complete_at(port: int, prompt: list[int], tokens: int = 8) -> Answer:
    """The same from whatever answers at this port."""
    body = {
        "model": "smol",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        start = time.perf_counter()
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status} {response.read()[:500]!r}")
        first = 0.0
        made: list[int] = []
        cached = 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event["choices"]:
                first = first or time.perf_counter() - start
                made += choice.get("token_ids") or []
            if usage := event.get("usage"):
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    finally:
        connection.close()
    return Answer(tuple(made), cached, first)
