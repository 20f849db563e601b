"""Leases as torch sees them."""

from __future__ import annotations

import gc

import pytest

import kelvin

torch = pytest.importorskip("torch")

from kelvin import BlockStatus
from stores import BLOCK_BYTES
from test_namespace import TOKENS, eventually, store


def test_tensors_are_the_leases_memory(namespace: kelvin.Namespace) -> None:
    (lease,) = namespace.acquire(store(namespace)[2:3])
    tensor = torch.from_dlpack(lease)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, (BLOCK_BYTES,))
    assert tensor.data_ptr() == torch.from_dlpack(lease).data_ptr(), "no copy"
    lease.release()
    assert bool((tensor.view(torch.bfloat16).view(torch.uint8) == 2).all())


def test_a_write_lease_is_filled_through_a_tensor(namespace: kelvin.Namespace) -> None:
    (lease,) = namespace.reserve(None, namespace.hashes(TOKENS)[:1])
    with pytest.raises(RuntimeError, match="buffer"):
        torch.frombuffer(lease, dtype=torch.float32)
    tensor = torch.frombuffer(memoryview(lease), dtype=torch.float32)
    tensor.copy_(torch.arange(BLOCK_BYTES // 4))
    with pytest.raises(BufferError):
        namespace.commit([lease])
    del tensor
    assert namespace.commit([lease]) == [BlockStatus.STORED]
    (found,) = namespace.acquire([lease.hash])
    assert torch.equal(torch.from_dlpack(found).view(torch.float32), torch.arange(BLOCK_BYTES // 4) * 1.0)


def test_a_tensor_that_keeps_no_view_keeps_the_lease(namespace: kelvin.Namespace) -> None:
    leased = namespace.stats()["read_leases"]
    (lease,) = namespace.acquire(store(namespace)[1:2])
    tensor = torch.frombuffer(lease, dtype=torch.uint8)
    lease.release()
    assert lease.released
    del lease
    gc.collect()
    # Another lease goes back meanwhile, so this one would have, too.
    namespace.acquire(namespace.hashes(TOKENS)[:1]).release()
    eventually(lambda: namespace.stats()["read_leases"] == leased + 1)
    assert bool((tensor == 1).all())
    del tensor
    eventually(lambda: namespace.stats()["read_leases"] == leased)
