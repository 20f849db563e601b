"""A real store for each test that asks for one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kelvin
from stores import Store, open_namespace

# Of torch, for the engines: with more threads than idle cores its barriers spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")


@pytest.fixture
def make_store() -> Iterator[Callable[..., Store]]:
    """Starts stores with the flags given; each is stopped when the test ends."""
    stores: list[Store] = []
    directories: list[tempfile.TemporaryDirectory[str]] = []

    def make(*flags: str, socket: bool = True) -> Store:
        # Not pytest's directory: the path of a Unix socket has at most 107 bytes.
        directories.append(tempfile.TemporaryDirectory(prefix="kelvin-"))
        store = Store(Path(directories[-1].name), *flags, socket=socket)
        stores.append(store)
        return store.start()

    yield make
    for store in stores:
        store.stop()
    for directory in directories:
        directory.cleanup()


@pytest.fixture(scope="session")
def shared_store() -> Iterator[Store]:
    """One store for all tests that leave it as it is; they use models of their own."""
    with tempfile.TemporaryDirectory(prefix="kelvin-") as directory:
        store = Store(Path(directory), "--dram", "64MiB").start()
        yield store
        store.stop()


@pytest.fixture(params=["shm", "tcp", "grpc"])
def namespace(request: pytest.FixtureRequest, shared_store: Store) -> Iterator[kelvin.Namespace]:
    """A fresh namespace by each transport."""
    client = kelvin.Client(shared_store.url, shared_memory=request.param == "shm", data_port=request.param == "tcp")
    with open_namespace(client, request.node.name) as opened:
        assert opened.transport == request.param
        yield opened


@pytest.fixture(scope="session")
def model_directory() -> Path:
    """SmolLM2-135M as a directory for transformers and vLLM."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    directory = Path(os.environ.get("KELVIN_HF_MODEL", cache / "kelvin" / "engines" / "smollm2"))
    if not (directory / "model.safetensors").exists():
        pytest.skip(f"no model in {directory}")
    return directory
