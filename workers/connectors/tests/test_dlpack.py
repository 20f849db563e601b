"""Leases through DLPack, as numpy takes them; `engines/test_torch.py` has torch."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import kelvin
from kelvin import BlockStatus
from stores import BLOCK_BYTES
from test_namespace import TOKENS, block, eventually, store


def test_a_read_lease_is_read_only_memory(namespace: kelvin.Namespace) -> None:
    (lease,) = namespace.acquire(store(namespace)[3:4])
    assert lease.__dlpack_device__() == (1, 0)
    array = np.from_dlpack(lease)
    assert (array.dtype, array.shape) == (np.uint8, (BLOCK_BYTES,))
    assert not array.flags.writeable
    assert array.ctypes.data == np.frombuffer(lease, np.uint8).ctypes.data, "no copy"
    assert (array == 3).all()
    with pytest.raises(BufferError, match="read-only"):
        lease.__dlpack__()
    with pytest.raises(BufferError, match="host memory"):
        lease.__dlpack__(max_version=(1, 0), dl_device=(2, 0))
    with pytest.raises(BufferError, match="never a copy"):
        lease.__dlpack__(max_version=(1, 0), copy=True)


def test_an_array_outlives_its_lease(namespace: kelvin.Namespace) -> None:
    leased = namespace.stats()["read_leases"]
    (lease,) = namespace.acquire(store(namespace)[1:2])
    array = np.from_dlpack(lease)
    lease.release()
    del lease
    gc.collect()
    assert (array == 1).all()
    del array
    eventually(lambda: namespace.stats()["read_leases"] == leased)


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 1), (9, 9)])
def test_a_capsule_that_nobody_takes_is_freed(
    namespace: kelvin.Namespace, version: tuple[int, int] | None
) -> None:
    (lease,) = namespace.reserve(None, namespace.hashes(TOKENS)[:1])
    capsule = lease.__dlpack__(max_version=version)
    assert ("versioned" in repr(capsule)) == (version is not None and version[0] >= 1)
    with pytest.raises(BufferError):
        namespace.commit([lease])
    del capsule
    lease.fill(block(0))
    assert namespace.commit([lease]) == [BlockStatus.STORED]


def test_a_write_lease_is_filled_through_an_array(namespace: kelvin.Namespace) -> None:
    (lease,) = namespace.reserve(None, namespace.hashes(TOKENS)[:1])
    array = np.from_dlpack(lease)
    array[:] = 8
    with pytest.raises(BufferError):
        namespace.commit([lease])
    with pytest.raises(BufferError, match="looked at"):
        lease.fill(block(1))
    del array
    assert namespace.commit([lease]) == [BlockStatus.STORED]
    assert namespace.read(lease.hash) == block(8)


def test_an_aborted_lease_goes_back_with_its_last_array(namespace: kelvin.Namespace) -> None:
    hashes = namespace.hashes(TOKENS)[:1]
    (lease,) = namespace.reserve(None, hashes)
    array = np.from_dlpack(lease)
    lease.abort()
    array[:] = 1
    assert namespace.reserve(None, hashes) == [BlockStatus.FILLING]
    del array
    eventually(lambda: namespace.match(hashes).filling_blocks == 0)
