"""The verbs, by each transport, against a real store."""

from __future__ import annotations

import array
import gc
import threading
import time

import numpy as np
import pytest

import kelvin
from kelvin import BlockStatus
from stores import BLOCK_BYTES, BLOCK_TOKENS, Store, fingerprint, open_namespace

TOKENS = list(range(100, 100 + 5 * BLOCK_TOKENS + 2))


def block(number: int) -> bytes:
    """A block's worth of bytes that says which it is."""
    return bytes([number % 251]) * BLOCK_BYTES


def store(namespace: kelvin.Namespace, tokens: list[int] = TOKENS) -> list[bytes]:
    """Stores every whole block of a prompt."""
    hashes = namespace.hashes(tokens)
    statuses = namespace.write(None, hashes, [block(n) for n in range(len(hashes))])
    assert statuses == [BlockStatus.STORED] * len(hashes)
    return hashes


def eventually(condition, seconds: float = 10.0) -> None:
    """Waits until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)


def test_written_blocks_are_found_and_read(namespace: kelvin.Namespace) -> None:
    assert namespace.match(TOKENS).blocks == 0
    hashes = store(namespace)
    assert len(hashes) == 5
    assert all(isinstance(value, bytes) and len(value) == 16 for value in hashes)
    found = namespace.match(TOKENS)
    assert (found.blocks, found.tokens, found.filling_blocks) == (5, 20, 0)
    assert found.tiers == ["dram"] * 5
    assert found.restorable_tokens == [4, 8, 12, 16, 20]
    assert found.load_us_estimate == 0
    assert namespace.match(hashes).blocks == 5
    for number, value in enumerate(hashes):
        assert namespace.read(value) == block(number)


def test_parts_of_blocks_are_read(namespace: kelvin.Namespace) -> None:
    hashes = store(namespace)
    with namespace.lease([*hashes, bytes(16)]) as parts:
        assert (len(parts), parts.hashes, parts.stopped) == (5, hashes, BlockStatus.MISSING)
        assert parts.read(10, 7) == [block(number)[10:17] for number in range(5)]
        assert parts.read(0, BLOCK_BYTES) == [block(number) for number in range(5)]
        with pytest.raises(kelvin.InvalidArgument, match="do not lie in a block"):
            parts.read(BLOCK_BYTES - 1, 2)
    with pytest.raises(ValueError, match="released"):
        parts.read(0, 1)


def test_acquire_leases_a_leading_run(namespace: kelvin.Namespace) -> None:
    hashes = store(namespace)
    other = namespace.hashes(TOKENS[:8] + [7] * 8)
    with namespace.acquire(other) as run:
        assert len(run) == 2
        assert run.stopped == BlockStatus.MISSING
        assert [lease.hash for lease in run] == hashes[:2]
        assert run[-1].tobytes() == block(1)
        assert bytes(run[0]) == block(0)
        with pytest.raises(IndexError):
            run[2]
        leases = list(run)
    assert all(lease.released for lease in leases)
    with pytest.raises(ValueError, match="released"):
        leases[0].tobytes()


def test_read_leases_show_bytes_in_place_and_read_only(namespace: kelvin.Namespace) -> None:
    hashes = store(namespace)
    (lease,) = namespace.acquire(hashes[3:4])
    view = memoryview(lease)
    assert (view.readonly, view.nbytes, view.format, lease.tier) == (True, BLOCK_BYTES, "B", "dram")
    first = np.frombuffer(lease, np.uint16)
    again = np.frombuffer(lease, np.uint8)
    assert first.__array_interface__["data"] == again.__array_interface__["data"], "no copy"
    assert (again == 3).all()
    assert not first.flags.writeable
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_released_lease_is_kept_as_long_as_it_is_looked_at(
    namespace: kelvin.Namespace,
) -> None:
    hashes = store(namespace)
    leased = namespace.stats()["read_leases"]
    (lease,) = namespace.acquire(hashes[:1])
    array_of_block = np.frombuffer(lease, np.uint8)
    lease.release()
    with pytest.raises(ValueError, match="released"):
        memoryview(lease)
    del lease
    gc.collect()
    assert (array_of_block == 0).all()
    # A second lease goes back meanwhile, so the first would have, too.
    with namespace.acquire(hashes[1:2]):
        pass
    eventually(lambda: namespace.stats()["read_leases"] == leased + 1)
    del array_of_block
    eventually(lambda: namespace.stats()["read_leases"] == leased)


def test_write_leases_are_filled_in_place_and_committed(namespace: kelvin.Namespace) -> None:
    hashes = namespace.hashes(TOKENS)
    leases = namespace.reserve(None, hashes)
    assert all(isinstance(lease, kelvin.WriteLease) for lease in leases)
    for number, lease in enumerate(leases[:-1]):
        np.frombuffer(lease, np.uint8)[:] = number
    leases[-1].fill(np.full(BLOCK_BYTES // 2, 0x0404, np.uint16))
    assert namespace.match(hashes).filling_blocks == 5
    assert namespace.commit(leases) == [BlockStatus.STORED] * 5
    assert not leases[0].open
    assert namespace.read(hashes[4]) == block(4)
    assert namespace.read(hashes[2]) == block(2)
    assert namespace.reserve(None, hashes) == [BlockStatus.ALREADY_STORED] * 5


def test_a_block_that_is_looked_at_is_not_committed(namespace: kelvin.Namespace) -> None:
    (lease,) = namespace.reserve(None, namespace.hashes(TOKENS)[:1])
    view = memoryview(lease)
    with pytest.raises(BufferError, match="let go"):
        namespace.commit([lease])
    assert lease.open
    view[:] = block(9)
    view.release()
    assert namespace.commit([lease]) == [BlockStatus.STORED]
    with pytest.raises(ValueError, match="committed"):
        namespace.commit([lease])
    with pytest.raises(ValueError, match="committed"):
        memoryview(lease)


def test_bytes_written_after_fill_count(namespace: kelvin.Namespace) -> None:
    (lease,) = namespace.reserve(None, namespace.hashes(TOKENS)[:1])
    lease.fill(block(1))
    memoryview(lease)[0] = 77
    assert namespace.commit([lease]) == [BlockStatus.STORED]
    assert namespace.read(lease.hash)[:2] == bytes([77, 1])


def test_an_aborted_reservation_can_be_made_again(namespace: kelvin.Namespace) -> None:
    hashes = namespace.hashes(TOKENS)[:2]
    for give_back in (
        lambda leases: namespace.abort(leases),
        lambda leases: [lease.__exit__(None, None, None) for lease in leases],
        lambda leases: leases.clear(),
    ):
        leases = namespace.reserve(None, hashes)
        assert all(isinstance(lease, kelvin.WriteLease) for lease in leases)
        assert namespace.reserve(None, hashes) == [BlockStatus.FILLING] * 2
        give_back(leases)
        eventually(lambda: namespace.match(hashes).filling_blocks == 0)


def test_reserve_says_why_not(namespace: kelvin.Namespace) -> None:
    hashes = namespace.hashes(TOKENS)
    assert namespace.reserve(hashes[0], hashes[1:2]) == [BlockStatus.NO_PARENT]
    assert namespace.write(hashes[0], hashes[1:2], [block(0)]) == [BlockStatus.NO_PARENT]


def test_acquire_waits_for_a_block_in_the_making(namespace: kelvin.Namespace) -> None:
    hashes = namespace.hashes(TOKENS)[:1]
    (lease,) = namespace.reserve(None, hashes)
    got: list[bytes] = []
    waiter = threading.Thread(
        target=lambda: got.extend(found.tobytes() for found in namespace.acquire(hashes, wait=30))
    )
    waiter.start()
    lease.fill(block(5))
    namespace.commit([lease])
    waiter.join(30)
    assert got == [block(5)]


def test_extra_and_token_types(namespace: kelvin.Namespace) -> None:
    plain = namespace.hashes(TOKENS)
    assert namespace.hashes(TOKENS, extra=b"lora") != plain
    for same in (
        tuple(TOKENS),
        np.array(TOKENS),
        np.array(TOKENS, np.int32),
        np.array(TOKENS, np.uint32)[:],
        array.array("I", TOKENS),
        np.array(TOKENS + TOKENS)[: len(TOKENS)],
    ):
        assert namespace.hashes(same) == plain
    assert namespace.hashes([]) == []
    assert namespace.match([]).blocks == 0


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ([1, -1, 2, 3], ValueError),
        ([2**32, 1, 2, 3], ValueError),
        (np.array([-5, 1, 2, 3]), ValueError),
        (np.zeros((2, 4), np.int64), ValueError),
        (["a"], TypeError),
        ("text", TypeError),
        (b"bytes", TypeError),
        (None, TypeError),
        ([1.5], TypeError),
    ],
)
def test_bad_tokens(shared_store: Store, tokens: object, error: type[Exception]) -> None:
    with open_namespace(kelvin.Client(shared_store.url), "bad-tokens") as namespace, pytest.raises(error):
        namespace.hashes(tokens)


def test_bad_arguments(namespace: kelvin.Namespace) -> None:
    hashes = namespace.hashes(TOKENS)
    with pytest.raises(ValueError, match="16 bytes"):
        namespace.acquire([b"short"])
    with pytest.raises(TypeError):
        namespace.acquire(hashes[0])
    with pytest.raises(ValueError, match="wait"):
        namespace.acquire(hashes, wait=-1)
    with pytest.raises(ValueError, match="wait"):
        namespace.acquire(hashes, wait=float("nan"))
    with pytest.raises(ValueError, match="8192"):
        namespace.write(None, hashes[:1], [b"short"])
    with pytest.raises(ValueError, match="1 blocks for 2 hashes"):
        namespace.write(None, hashes[:2], [block(0)])
    with pytest.raises(OverflowError):
        namespace.reserve(None, hashes, priority=200)
    with pytest.raises(LookupError) as caught:
        namespace.read(hashes[0])
    assert isinstance(caught.value, kelvin.UnknownBlock)
    assert caught.value.reason == "UNKNOWN_BLOCK"
    with pytest.raises(ValueError, match="evict_all"):
        namespace.evict([])
    (lease,) = namespace.reserve(None, hashes[:1])
    with pytest.raises(ValueError, match="8192 bytes, not 3"):
        lease.fill(b"abc")
    with pytest.raises(ValueError, match="twice"):
        namespace.commit([lease, lease])
    assert namespace.commit([lease]) == [BlockStatus.STORED]


def test_ranges(namespace: kelvin.Namespace) -> None:
    hashes = store(namespace)
    assert namespace.prefetch(TOKENS)["ready_blocks"] == 5
    pin = namespace.pin(hashes[:2], ttl=60.0)
    assert pin["blocks"] == 2
    assert namespace.explain(hashes)[0]["pinned"]
    assert namespace.unpin(pin["pin_id"])["pins"] == 1
    assert namespace.end_session(TOKENS) == 5
    assert namespace.evict(hashes[:4])["evicted_blocks"] == 2
    reasons = [found["reason"] for found in namespace.explain(hashes)]
    assert reasons == ["stored"] * 3 + ["removed"] * 2
    assert namespace.evict_all()["evicted_blocks"] == 3
    assert namespace.match(hashes).blocks == 0


def test_watch_tells_what_is_there_then_what_comes(namespace: kelvin.Namespace) -> None:
    hashes = namespace.hashes(TOKENS)
    namespace.write(None, hashes[:2], [block(0), block(1)])
    watch = namespace.watch()
    seen: list[bytes] = []
    message = next(watch)
    assert message["snapshot_begin"]
    while not message["snapshot_end"]:
        seen += [event["hash"] for event in message["events"]]
        message = next(watch)
    seen += [event["hash"] for event in message["events"]]
    assert set(seen) == set(hashes[:2])
    namespace.write(hashes[1], hashes[2:3], [block(2)])
    live = next(watch)
    assert [(event["kind"], event["parent"]) for event in live["events"]] == [("stored", hashes[1])]
    watch.close()


def test_stats(namespace: kelvin.Namespace) -> None:
    store(namespace)
    stats = namespace.stats()
    (own,) = [entry for entry in stats["namespaces"] if entry["model"] == namespace.model]
    assert (own["blocks"], own["bytes"], own["namespace_id"]) == (5, 5 * BLOCK_BYTES, namespace.id)
    assert stats["tiers"][0]["tier"] == "dram"
    if namespace.transport == "shm":
        assert stats["copied_bytes"] == 0 or stats["grpc_written_bytes"] > 0


def test_another_fingerprint_is_refused_and_both_are_named(shared_store: Store) -> None:
    client = kelvin.Client(shared_store.url)
    with open_namespace(client, "refused"), pytest.raises(kelvin.FingerprintMismatch) as caught:
        open_namespace(client, "refused", fingerprint=fingerprint(dtype="float16"))
    assert caught.value.reason == "FINGERPRINT_MISMATCH"
    assert "uint8" in str(caught.value) and "float16" in str(caught.value)


def test_bad_handshakes(shared_store: Store) -> None:
    client = kelvin.Client(shared_store.url)
    with pytest.raises(kelvin.InvalidArgument, match="block_tokens"):
        open_namespace(client, "bad", block_tokens=0)
    with pytest.raises(kelvin.InvalidArgument, match="rank"):
        open_namespace(client, "bad", shard=kelvin.Shard(tensor_rank=2, tensor_size=2))
    with pytest.raises(OverflowError):
        open_namespace(client, "bad", block_bytes=-1)
    with pytest.raises((TypeError, AttributeError)):
        open_namespace(client, "bad", fingerprint="text")


def test_shards_do_not_meet(shared_store: Store) -> None:
    client = kelvin.Client(shared_store.url)
    first = open_namespace(client, "shards", shard=kelvin.Shard(0, 2))
    second = open_namespace(client, "shards", shard=kelvin.Shard(1, 2))
    store(first)
    assert first.match(TOKENS).blocks == 5
    assert second.match(TOKENS).blocks == 0
