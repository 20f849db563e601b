"""Blocks to and from a store in another process over loopback TCP: Mooncake's store, Redis, and a raw stream.

Usage: peers.py mooncake|redis|raw [--block-kib 2048] [--batch 16] [--seconds 3]. Prints GB/s, and CPU-seconds a GB of all
processes together. `run.sh` runs all of them beside `kelvin-bench transport`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

SETS = 4
"""Batches that are stored and read in turn: more than a cache holds."""

TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds(pids: list[int]) -> float:
    """Of these processes, user and system."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


@contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended, whatever happens."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(5)
            except subprocess.TimeoutExpired:
                running.kill()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"nobody listens on port {port}") from None
            time.sleep(0.05)


def measure(name: str, pids: list[int], batch_bytes: int, seconds: float, move: Callable[[int], None]) -> None:
    """Runs `move(set)` over and over for a time."""
    everybody = [os.getpid(), *pids]
    for at in range(SETS):
        move(at)
    begin, cpu, moved = time.perf_counter(), cpu_seconds(everybody), 0
    while time.perf_counter() - begin < seconds:
        move(moved % SETS)
        moved += 1
    took, spent = time.perf_counter() - begin, cpu_seconds(everybody) - cpu
    gigabytes = moved * batch_bytes / 1e9
    print(f"  {name:<18}{gigabytes / took:>8.2f} GB/s{spent / gigabytes:>8.2f} CPU-s/GB", flush=True)


def mooncake_holder(master: str, segment: int) -> None:
    """The process whose memory the blocks are in."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    status = store.setup("127.0.0.1", "P2PHANDSHAKE", segment, 16 << 20, "tcp", "", master)
    print("ready" if status == 0 else f"setup failed: {status}", flush=True)
    signal.pause()


def mooncake(args: argparse.Namespace) -> None:
    import ctypes

    from mooncake.store import MooncakeDistributedStore

    block, batch = args.block_kib << 10, args.batch
    port, segment = free_port(), max(4 << 30, SETS * batch * block * 4)
    master = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        program = os.path.join(os.path.dirname(sys.executable), "mooncake_master")
        server = stack.enter_context(process([program, f"--rpc_port={port}", "--metrics_port=0", "--enable_metric_reporting=false"]))
        wait_for(port)
        command = [sys.executable, __file__, "mooncake-holder", "--master", master, "--segment", str(segment)]
        holder = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        stack.callback(holder.kill)
        assert holder.stdout is not None
        for line in holder.stdout:
            if line.strip() == b"ready":
                break
            if b"failed" in line:
                raise SystemExit(f"Mooncake: {line.decode()}")
        store = MooncakeDistributedStore()
        # No memory of its own: every block goes to the other process.
        if (status := store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 64 << 20, "tcp", "", master)) != 0:
            raise SystemExit(f"Mooncake's client: setup failed: {status}")
        memory = (ctypes.c_char * (SETS * batch * block))()
        ctypes.memset(memory, 7, len(memory))
        start = ctypes.addressof(memory)
        if store.register_buffer(start, len(memory)) != 0:
            raise SystemExit("Mooncake: the buffer cannot be registered")
        sizes = [block] * batch

        def places(at: int) -> list[int]:
            return [start + (at * batch + i) * block for i in range(batch)]

        def names(at: int) -> list[str]:
            return [f"{at}-{i}" for i in range(batch)]

        def put(at: int) -> None:
            if any(store.batch_upsert_from(names(at), places(at), sizes)):
                raise SystemExit("Mooncake: a store failed")

        def get(at: int) -> None:
            if any(size != block for size in store.batch_get_into(names(at), places(at), sizes)):
                raise SystemExit("Mooncake: a read failed")

        pids = [server.pid, holder.pid]
        measure("mooncake store", pids, batch * block, args.seconds, put)
        measure("mooncake read", pids, batch * block, args.seconds, get)
        store.close()


def redis(args: argparse.Namespace) -> None:
    import redis as client

    block, batch = args.block_kib << 10, args.batch
    port = free_port()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        server = stack.enter_context(process(command))
        wait_for(port)
        connection = client.Redis(port=port)
        payload = bytes(7 for _ in range(block))

        def put(at: int) -> None:
            pipeline = connection.pipeline(transaction=False)
            for i in range(batch):
                pipeline.set(f"{at}-{i}", payload)
            pipeline.execute()

        def get(at: int) -> None:
            assert all(len(value) == block for value in connection.mget([f"{at}-{i}" for i in range(batch)]))

        measure("redis store", [server.pid], batch * block, args.seconds, put)
        measure("redis read", [server.pid], batch * block, args.seconds, get)


def raw(args: argparse.Namespace) -> None:
    """One stream: a copy into the kernel and one out of it."""
    total = args.batch * (args.block_kib << 10)
    ours, theirs = _loopback()
    buffer = bytearray(total)

    def sink() -> None:
        while ours.recv_into(buffer):
            pass

    reader = threading.Thread(target=sink, daemon=True)
    reader.start()
    payload = bytes(total)
    measure("raw stream", [], total, args.seconds, lambda _: theirs.sendall(payload))
    theirs.close()
    reader.join()


def _loopback() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["mooncake", "redis", "raw", "mooncake-holder"])
    parser.add_argument("--block-kib", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--master", help=argparse.SUPPRESS)
    parser.add_argument("--segment", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer == "mooncake-holder":
        mooncake_holder(args.master, args.segment)
    else:
        {"mooncake": mooncake, "redis": redis, "raw": raw}[args.peer](args)


if __name__ == "__main__":
    main()
