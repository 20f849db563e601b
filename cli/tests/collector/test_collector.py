"""Traces of a real cluster, taken by a collector that others wrote: rotel, from PyPI.

Wants KELVIN_BIN and KELVIN_TEST_MODEL. What the spans must look like in full is tested in cli/tests/it/traces.rs; here
it is whether another implementation of OTLP understands them.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import rotel

# Only a hang takes so long.
PATIENCE_SECONDS = 120.0
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SERVICES = {"kelvin-router", "kelvin-prefill", "kelvin-decode", "kelvin-store"}
AGENT = Path(rotel.__file__).parent / "rotel-agent"


@dataclass
class Span:
    """One that the collector took, and the process it is of."""

    service: str
    trace: str = ""
    name: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


def spans(log: str) -> list[Span]:
    """What the collector's debug log shows."""
    found: list[Span] = []
    service = ""
    for line in log.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        attribute = re.fullmatch(r"-> (\S+): \w+\((.*)\)", line.strip())
        if line.startswith("Span #"):
            found.append(Span(service))
        elif attribute and attribute[1] == "service.name":
            service = attribute[2]
        elif attribute and found:
            found[-1].attributes[attribute[1]] = attribute[2]
        elif name == "Trace ID":
            found[-1].trace = value
        elif name == "Name" and found:
            found[-1].name = value
    return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def until(holds, what):  # type: ignore[no-untyped-def]
    """What `holds` gives as soon as it is something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"it never came: {what()}"
        time.sleep(0.1)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Collector:
    url: str
    log: Path

    def spans(self) -> list[Span]:
        return [span for span in spans(self.log.read_text()) if span.trace == TRACE]


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    """rotel, which writes what it takes into a file and sends it nowhere."""
    port = free_port()
    log = tmp_path / "rotel.log"
    command = [AGENT, "start", "--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed"]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{port}", "--otlp-http-endpoint", f"127.0.0.1:{free_port()}"]
    command += ["--pid-file", tmp_path / "rotel.pid", "--log-file", tmp_path / "rotel-own.log"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        until(lambda: listens(port), lambda: log.read_text())
        yield Collector(f"http://127.0.0.1:{port}", log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(collector: Collector, tmp_path: Path) -> Iterator[dict[str, str]]:
    """`kelvin up` with a real model, that sends its traces there; what it says when it is ready."""
    model = os.environ.get("KELVIN_TEST_MODEL")
    if not model:
        pytest.skip("KELVIN_TEST_MODEL names no GGUF file")
    run = tmp_path / "run"
    run.mkdir()
    command = [os.environ["KELVIN_BIN"], "up", "--json", "--model", os.path.expanduser(model), "--model-name", "smol"]
    command += ["--listen", "127.0.0.1:0", "--dram", "256MiB", "--threads", "1", "--run-dir", str(run)]
    command += ["--otlp", collector.url]
    # Prompts are computed apart, so that all four processes take part.
    env = {**os.environ, "KELVIN_ROUTER_PREFILL": "remote", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, env=env)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_SECONDS)
        line = process.stdout.readline() if ready else b""
        assert line, log.read_text()
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)


def health(cluster: dict[str, str]) -> dict[str, str]:
    with urllib.request.urlopen(f"http://{cluster['listen']}/health", timeout=PATIENCE_SECONDS) as answer:
        report: dict[str, str] = json.load(answer)
        return report


def test_a_collector_understands_a_request_over_all_processes(collector: Collector, cluster: dict[str, str]) -> None:
    # The router reaches the store a moment after its start.
    until(lambda: health(cluster)["store"] == "connected", lambda: str(health(cluster)))
    prompt = "A trace is one request over all processes. " * 20
    body = {"model": "smol", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    headers = {"content-type": "application/json", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    request = urllib.request.Request(f"http://{cluster['listen']}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        assert answer.status == 200

    def all_there() -> bool:
        found = collector.spans()
        names = {span.name for span in found}
        # These are the last to end.
        return {span.service for span in found} >= SERVICES and {"POST /v1/completions", "decode", "prefill"} <= names

    until(all_there, lambda: collector.log.read_text())
    found = collector.spans()
    assert {span.service for span in found} == SERVICES
    of = {(span.service, span.name): span.attributes for span in found}
    ids = {
        of[key].get("request_id")
        for key in [
            ("kelvin-router", "POST /v1/completions"),
            ("kelvin-router", "schedule"),
            ("kelvin-prefill", "prefill"),
            ("kelvin-decode", "decode"),
        ]
    }
    assert len(ids) == 1 and None not in ids, of
    acquired = [span.attributes for span in found if (span.service, span.name) == ("kelvin-store", "store Acquire")]
    assert any(
        each.get("tiers", "").startswith("dram:") and int(each.get("bytes", 0)) > 0 and int(each.get("blocks", 0)) > 0
        for each in acquired
    ), acquired
