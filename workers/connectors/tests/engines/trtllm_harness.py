"""An executor as TensorRT-LLM's, as far as a KV cache connector sees it: same calls, same order, on the CPU.

One pool tensor a rank, blocks handed out and taken back, chunked prefill, loads between steps, ranks whose answers
count when all have given them. What the workers are told is pickled for each, as over MPI.

The model is a recurrence: a token's KV follows from the token and from the KV *in the pool* before it, and the next
token from all KV of the sequence. Blocks that are not a request's are full of rubbish, so whatever is loaded or saved
wrongly, too early or too late changes what is generated.

Calls and their order are those of TensorRT-LLM's documentation. This is no proof that TensorRT-LLM itself behaves so.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

# Behind everything else: a TensorRT-LLM that is installed is the one to test with.
sys.path.append(str(Path(__file__).parent / "stand_in"))

from tensorrt_llm._torch.pyexecutor.kv_cache_connector import (
    KvCacheConnectorScheduler,
    KvCacheConnectorWorker,
    RequestData,
    SchedulerOutput,
)
from tensorrt_llm._torch.pyexecutor.llm_request import LlmRequest
from tensorrt_llm.llmapi.llm_args import KvCacheConfig, ParallelConfig, TorchLlmArgs

from kelvin.trtllm import KelvinScheduler, KelvinWorker

BLOCK_TOKENS = 4
LAYERS = 2
WIDTH = 64
"""Elements of a token, a layer, a half."""
POOL_BLOCKS = 24
MODULUS = 251
"""Small enough for exact sums in any type."""
RUBBISH = -1.0
RUN_SECONDS = 60.0


def arguments(model: str, ranks: int = 1, **changes: Any) -> TorchLlmArgs:
    """What an executor is made with."""
    return TorchLlmArgs(
        **{
            "model": model,
            "parallel_config": ParallelConfig(tp_size=ranks),
            "kv_cache_config": KvCacheConfig(tokens_per_block=BLOCK_TOKENS, enable_partial_reuse=False),
            **changes,
        }
    )


@dataclass
class Running:
    """A request in the executor."""

    request: LlmRequest
    prompt_tokens: int
    make: int
    """Tokens to generate."""
    block_ids: list[int] = field(default_factory=list)
    computed: int = 0
    loaded_tokens: int = 0
    told_tokens: int = 0
    told_blocks: int = 0
    loading: bool = False

    @property
    def made(self) -> list[int]:
        """Tokens generated so far."""
        return self.request.get_tokens(0)[self.prompt_tokens :]


class Executor:
    """Scheduler on rank 0, a worker and a pool a rank, all in this process."""

    def __init__(
        self,
        llm_args: TorchLlmArgs,
        *,
        connected: bool = True,
        dtype: torch.dtype = torch.float32,
        chunk_tokens: int = 1 << 30,
        window_blocks: int | None = None,
        local_tokens: int = 0,
    ) -> None:
        """Without a connector where not `connected`; `local_tokens` are found in a cache of its own."""
        ranks = llm_args.parallel_config.tp_size
        self.chunk_tokens = chunk_tokens
        self.window_blocks = window_blocks
        self.local_tokens = local_tokens
        shape = (POOL_BLOCKS, LAYERS, 2, BLOCK_TOKENS * WIDTH)
        self.pools = [torch.full(shape, RUBBISH, dtype=dtype) for _ in range(ranks)]
        # The last one is nobody's: -1 as an index would mean it.
        self.free = list(range(POOL_BLOCKS - 1))
        self.waiting: list[Running] = []
        self.active: dict[int, Running] = {}
        self.saving: dict[int, Running] = {}
        self.asked: Counter[int] = Counter()
        self.after_match: Callable[[], None] = lambda: None
        self._new_loads: list[int] = []
        self._new_saves: list[int] = []
        self._ended_loads: Counter[int] = Counter()
        self._ended_saves: Counter[int] = Counter()
        self._requests = 0
        self.scheduler: KvCacheConnectorScheduler | None = None
        self.workers: list[KvCacheConnectorWorker] = []
        if connected:
            self.scheduler = KelvinScheduler(llm_args)
            for rank, pool in enumerate(self.pools):
                # Every process has arguments of its own; that of rank 0 gives both halves the same.
                parallel = replace(llm_args.parallel_config, rank=rank)
                own = replace(llm_args, parallel_config=parallel) if rank else llm_args
                self.workers.append(KelvinWorker(own))
                self.workers[-1].register_kv_caches(pool)
            self.scheduler.wait_for_initialization()

    # What a user calls

    def submit(self, tokens: list[int], make: int = 6, **attributes: object) -> Running:
        """Takes a request; `run` answers it."""
        self._requests += 1
        running = Running(LlmRequest(self._requests, tokens, **attributes), len(tokens), make)
        self.waiting.append(running)
        return running

    def run(self) -> None:
        """Steps until every request is answered and has given its blocks back."""
        deadline = time.monotonic() + RUN_SECONDS
        while self.waiting or self.active or self.saving:
            assert time.monotonic() < deadline, "a request does not end"
            if not self.step():
                time.sleep(0.0005)

    def answer(self, tokens: list[int], make: int = 6, **attributes: object) -> Running:
        """One request."""
        running = self.submit(tokens, make, **attributes)
        self.run()
        return running

    def close(self) -> None:
        """Ends the connector's threads and sessions."""
        for half in (self.scheduler, *self.workers):
            if isinstance(half, KelvinScheduler | KelvinWorker):
                half.close()

    # One iteration

    def step(self) -> bool:
        """Whether it computed anything."""
        fresh = self._add_sequences()
        batch = [running for running in self.active.values() if not running.loading]
        counts = {running.request.request_id: self._chunk(running) for running in batch}
        if self.scheduler is not None and (batch or fresh):
            told = self.scheduler.build_connector_meta(self._output(batch, counts))
            for worker in self.workers:
                worker.bind_connector_meta(pickle.loads(pickle.dumps(told)))
                worker.start_load_kv(stream())
        if batch:
            self._forward(batch, counts)
            for running in batch:
                self._sample(running)
        self._collect()
        return bool(batch)

    def _add_sequences(self) -> bool:
        added = False
        for running in list(self.waiting):
            if self._blocks_to_the_end([*self.active.values(), running]) > len(self.free):
                break  # GUARANTEED_NO_EVICT
            self._allocate(running, running.prompt_tokens)
            added = True
            self.waiting.remove(running)
            request = running.request
            self.active[request.request_id] = running
            running.computed = self.local_tokens
            for position in range(self.local_tokens):
                self._compute(running, position)
            if self.scheduler is None:
                continue
            self.asked[request.request_id] += 1
            matched, later = self.scheduler.get_num_new_matched_tokens(request, self.local_tokens)
            assert later == (matched > 0), "a match of nothing can't be asynchronous"
            assert 0 <= matched < running.prompt_tokens - self.local_tokens, "one token is left to compute"
            self.after_match()
            self.scheduler.update_state_after_alloc(request, self._visible(running))
            running.loaded_tokens = matched
            if later:
                running.loading = True
                self._new_loads.append(request.request_id)
        return added

    def _blocks_to_the_end(self, requests: list[Running]) -> int:
        """What they may still take."""
        return sum(
            -(-(running.prompt_tokens + running.make) // BLOCK_TOKENS) - len(running.block_ids)
            for running in requests
        )

    def _allocate(self, running: Running, tokens: int) -> None:
        needed = -(-tokens // BLOCK_TOKENS) - len(running.block_ids)
        running.block_ids += [self.free.pop(0) for _ in range(needed)]

    def _visible(self, running: Running) -> list[int]:
        """Block ids as the connector is told them."""
        blocks = len(running.block_ids)
        hidden = max(0, blocks - self.window_blocks) if self.window_blocks is not None else 0
        return [-1] * hidden + running.block_ids[hidden:]

    def _chunk(self, running: Running) -> int:
        return min(len(running.request.get_tokens(0)) - running.computed, self.chunk_tokens)

    def _output(self, batch: list[Running], counts: dict[int, int]) -> SchedulerOutput:
        output = SchedulerOutput()
        for running in batch:
            tokens, blocks = running.request.get_tokens(0), self._visible(running)
            data = RequestData(
                request_id=running.request.request_id,
                new_tokens=tokens[running.told_tokens :],
                new_block_ids=blocks[running.told_blocks :],
                computed_position=running.computed,
                num_scheduled_tokens=counts[running.request.request_id],
            )
            (output.cached_requests if running.told_tokens else output.new_requests).append(data)
            running.told_tokens, running.told_blocks = len(tokens), len(blocks)
        return output

    def _forward(self, batch: list[Running], counts: dict[int, int]) -> None:
        for layer in range(LAYERS):
            for worker in self.workers:
                worker.wait_for_layer_load(layer, stream())
        for running in batch:
            for _ in range(counts[running.request.request_id]):
                self._compute(running, running.computed)
                running.computed += 1
        for layer in range(LAYERS):
            for worker in self.workers:
                worker.save_kv_layer(layer, stream())
        for worker in self.workers:
            worker.wait_for_save(stream())

    def _place(self, pool: torch.Tensor, running: Running, position: int) -> torch.Tensor:
        """A token's KV in the pool, `[layers, 2, width]`."""
        slot = position % BLOCK_TOKENS
        return pool[running.block_ids[position // BLOCK_TOKENS], :, :, slot * WIDTH : (slot + 1) * WIDTH]

    def _compute(self, running: Running, position: int) -> None:
        token = running.request.get_tokens(0)[position]
        for rank, pool in enumerate(self.pools):
            before = self._place(pool, running, position - 1) if position else torch.zeros(LAYERS, 2, WIDTH)
            offsets = torch.arange(LAYERS * 2 * WIDTH).view(LAYERS, 2, WIDTH)
            made = (3 * before.float() + token + rank + offsets) % MODULUS
            self._place(pool, running, position).copy_(made)

    def _sample(self, running: Running) -> None:
        request, tokens = running.request, running.request.get_tokens(0)
        if running.computed < len(tokens):
            return
        hidden = self._visible(running).count(-1) * BLOCK_TOKENS
        total = sum(
            self._place(pool, running, position).float().sum().item()
            for pool in self.pools
            for position in range(hidden, len(tokens))
        )
        request.add_new_token(int(total) % 1000, 0)
        if len(running.made) < running.make:
            self._allocate(running, len(tokens) + 1)
            return
        del self.active[request.request_id]
        if self.scheduler is not None and self.scheduler.request_finished(request, self._visible(running)):
            self.saving[request.request_id] = running
            self._new_saves.append(request.request_id)
        else:
            self._release(running)

    def _release(self, running: Running) -> None:
        """Takes a request's blocks back and spoils them."""
        for pool in self.pools:
            pool[running.block_ids] = RUBBISH
        self.free += running.block_ids

    def _collect(self) -> None:
        """Acts on what every worker has said."""
        saves, self._new_saves = self._new_saves, []
        loads, self._new_loads = self._new_loads, []
        for worker in self.workers:
            saved, loaded = worker.get_finished(list(saves), list(loads))
            self._ended_saves.update(saved)
            self._ended_loads.update(loaded)
        for request in [ended for ended, count in self._ended_loads.items() if count == len(self.workers)]:
            del self._ended_loads[request]
            running = self.active[request]
            running.loading = False
            running.computed += running.loaded_tokens
        for request in [ended for ended, count in self._ended_saves.items() if count == len(self.workers)]:
            del self._ended_saves[request]
            self._release(self.saving.pop(request))
        left = [*self._ended_loads.values(), *self._ended_saves.values()]
        assert max(left, default=0) <= len(self.workers), "a worker names a request once"


def stream() -> Any:
    """Where TensorRT-LLM would give its stream; there is none on the CPU."""
    return None
