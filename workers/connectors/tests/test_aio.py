"""The verbs as awaitables."""

from __future__ import annotations

import asyncio

import pytest

import kelvin
import kelvin.aio
from kelvin import BlockStatus
from stores import BLOCK_BYTES, BLOCK_TOKENS, Store, fingerprint
from test_namespace import TOKENS, block


async def opened(store: Store, model: str) -> kelvin.aio.Namespace:
    client = await kelvin.aio.connect(store.url)
    return await client.namespace(
        model=model, fingerprint=fingerprint(), block_tokens=BLOCK_TOKENS, block_bytes=BLOCK_BYTES
    )


def test_verbs(shared_store: Store) -> None:
    async def scenario() -> None:
        namespace = await opened(shared_store, "aio-verbs")
        hashes = namespace.hashes(TOKENS)
        assert (await namespace.match(hashes)).blocks == 0
        leases = await namespace.reserve(None, hashes)
        for number, lease in enumerate(leases):
            lease.fill(block(number))
        waiting = asyncio.ensure_future(namespace.acquire(hashes, wait=30.0))
        await asyncio.sleep(0)
        assert await namespace.commit(leases) == [BlockStatus.STORED] * 5
        with await waiting as run:
            assert len(run) >= 1
            assert run[0].tobytes() == block(0)
        assert await namespace.read(hashes[4]) == block(4)
        many = await asyncio.gather(*(namespace.match(hashes) for _ in range(50)))
        assert {found.blocks for found in many} == {5}
        watch = await namespace.watch()
        async for message in watch:
            if message["snapshot_end"]:
                break
        await namespace.close()

    asyncio.run(scenario())


def test_errors_and_cancelling(shared_store: Store) -> None:
    async def scenario() -> None:
        namespace = await opened(shared_store, "aio-errors")
        hashes = namespace.hashes(TOKENS)
        with pytest.raises(kelvin.UnknownBlock):
            await namespace.read(hashes[0])
        leases = await namespace.reserve(None, hashes[:1])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(namespace.acquire(hashes[:1], wait=60.0), 0.05)
        namespace.abort(leases)
        with pytest.raises(kelvin.Unavailable):
            await kelvin.aio.connect("http://127.0.0.1:9")

    asyncio.run(scenario())


def test_awaitables_need_a_loop(shared_store: Store) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        kelvin.aio.connect(shared_store.url)
