"""A store that is not there, dies, hangs or refuses; a process that forks."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

import kelvin
from kelvin import BlockStatus
from stores import BLOCK_BYTES, Store, open_namespace
from test_namespace import TOKENS, block, eventually, store


def test_nobody_listens() -> None:
    with pytest.raises(kelvin.Unavailable) as caught:
        kelvin.Client("http://127.0.0.1:9")
    assert caught.value.retryable
    assert isinstance(caught.value, ConnectionError)
    with pytest.raises(kelvin.KelvinError):
        kelvin.Client("no url at all")


def test_a_store_that_dies_costs_errors_and_never_memory(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    client = kelvin.Client(running.url, call_timeout=1.0)
    namespace = open_namespace(client, "dies")
    hashes = store(namespace)
    (lease,) = namespace.acquire(hashes[1:2])
    view = np.frombuffer(lease, np.uint8)
    reserved = namespace.reserve(hashes[-1], [bytes(16)])
    running.kill()
    assert (view == 1).all(), "mapped memory outlives the store"
    lease.release()
    assert (view == 1).all()
    with pytest.raises(kelvin.Unavailable):
        namespace.match(TOKENS)
    reserved[0].fill(block(1))
    with pytest.raises(kelvin.Unavailable):
        namespace.commit(reserved)
    del view

    running.start()

    def works() -> bool:
        try:
            return namespace.match(TOKENS).blocks == 0
        except kelvin.KelvinError as error:
            assert error.retryable
            return False

    eventually(works, 30)
    assert namespace.transport == "shm"
    store(namespace)


def test_leases_of_a_store_that_is_gone_are_stale(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    namespace = open_namespace(kelvin.Client(running.url), "stale")
    (old,) = namespace.reserve(None, namespace.hashes(TOKENS)[:1])
    old.fill(block(0))
    running.kill()
    running.start()

    def works() -> bool:
        try:
            return namespace.match(TOKENS).blocks == 0
        except kelvin.KelvinError:
            return False

    eventually(works, 30)
    assert namespace.commit([old]) == [BlockStatus.STALE_LEASE]


def test_a_store_that_hangs_is_unavailable_in_time(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    namespace = open_namespace(kelvin.Client(running.url, call_timeout=0.5), "hangs")
    store(namespace)
    running.signal(signal.SIGSTOP)
    with pytest.raises(kelvin.Unavailable):
        namespace.match(TOKENS)
    running.signal(signal.SIGCONT)
    assert namespace.match(TOKENS).blocks == 5


@pytest.mark.parametrize("data_port", [True, False])
def test_without_a_socket_bytes_go_over_the_network(make_store: Callable[..., Store], data_port: bool) -> None:
    running = make_store("--dram", "16MiB", socket=False)
    namespace = open_namespace(kelvin.Client(running.url, data_port=data_port), "remote")
    assert namespace.transport == ("tcp" if data_port else "grpc")
    assert namespace.read(store(namespace)[2]) == block(2)


def test_tokens_of_access(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB", "--token", "secret")
    with pytest.raises(kelvin.Unauthenticated) as caught:
        open_namespace(kelvin.Client(running.url), "token")
    assert caught.value.reason == "UNAUTHENTICATED"
    store(open_namespace(kelvin.Client(running.url, "secret"), "token"))


def test_a_full_store_says_so(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    namespace = open_namespace(kelvin.Client(running.url), "full", block_bytes=4 << 20)
    hashes = namespace.hashes(list(range(40)))
    reserved = namespace.reserve(None, hashes)
    assert BlockStatus.NO_SPACE in reserved
    assert isinstance(reserved[0], kelvin.WriteLease)


def test_the_session_ends_with_the_namespace(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    client = kelvin.Client(running.url)
    with open_namespace(client, "ends") as namespace:
        assert client.stats()["sessions"] == 1
        hashes = store(namespace)
    eventually(lambda: client.stats()["sessions"] == 0)
    with pytest.raises(kelvin.KelvinError):
        namespace.acquire(hashes)


def test_a_child_is_told_to_connect_again(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    namespace = open_namespace(kelvin.Client(running.url), "forks")
    hashes = store(namespace)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            namespace.match(hashes)
        except RuntimeError as error:
            own = open_namespace(kelvin.Client(running.url), "forks")
            code = 0 if "fork" in str(error) and own.match(hashes).blocks == 5 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert namespace.match(hashes).blocks == 5


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(kelvin.Unavailable("gone", "UNAVAILABLE", True)))
    assert (str(error), error.retryable) == ("gone (UNAVAILABLE)", True)


def test_interrupts_end_a_wait(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    namespace = open_namespace(kelvin.Client(running.url), "interrupt")
    hashes = namespace.hashes(TOKENS)[:1]
    lease = namespace.reserve(None, hashes)
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            namespace.acquire(hashes, wait=60)
        assert time.monotonic() - start < 30
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    namespace.abort(lease)


def test_damaged_bytes_are_a_miss(make_store: Callable[..., Store]) -> None:
    running = make_store("--dram", "16MiB")
    client = kelvin.Client(running.url)
    namespace = open_namespace(client, "damaged")
    hashes = namespace.hashes(TOKENS)
    leases = namespace.reserve(None, hashes)
    for number, lease in enumerate(leases):
        lease.fill(block(number))
    # Where the second block's bytes are, as a broken writer would still know after the commit.
    view = np.frombuffer(leases[1], np.uint8)
    address = view.__array_interface__["data"][0]
    del view
    assert namespace.commit(leases) == [BlockStatus.STORED] * 5
    import ctypes

    ctypes.memset(address, 0xEE, 16)
    run = namespace.acquire(hashes)
    assert len(run) == 1
    assert run.stopped == BlockStatus.CHECKSUM_MISMATCH
    late = namespace.acquire(hashes, verify=False)
    if len(late) > 1:
        with pytest.raises(kelvin.ChecksumMismatch):
            memoryview(late[1])
    late.release()
    run.release()
    eventually(lambda: namespace.match(hashes).blocks == 1)
    assert namespace.explain(hashes)[1]["reason"] == "quarantined"
    assert BLOCK_BYTES == 8192
