"""A connector's half of the KV API in Python, from the .proto alone: no `kelvin` package. See README.md.

python client.py [HOST:PORT] stores and finds the blocks of a made-up prompt.
"""

import sys
import tempfile
from pathlib import Path

import grpc
import xxhash
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[4] / "proto" / "proto"
GENERATED = tempfile.TemporaryDirectory()  # a real connector generates once, when it is built
FILES = [str(path) for path in sorted(PROTO.glob("kelvin/kv/v1/*.proto"))]
if protoc.main(
    ["", f"-I{PROTO}", f"--python_out={GENERATED.name}", f"--grpc_python_out={GENERATED.name}", *FILES]
):
    raise SystemExit("protoc failed")
(Path(GENERATED.name) / "kelvin" / "__init__.py").touch()  # goes before an installed package of that name
sys.path.insert(0, GENERATED.name)
from kelvin.kv.v1 import kv_pb2 as kv
from kelvin.kv.v1 import kv_pb2_grpc
from kelvin.kv.v1 import ranges_pb2 as ranges
from kelvin.kv.v1 import types_pb2 as types

FRAME = 1 << 20
TTL_MS = 10_000


class Client:
    """One namespace over one connection; every call carries the session."""

    def __init__(self, address: str, model: str, block_tokens: int, block_bytes: int) -> None:
        self.store = kv_pb2_grpc.KvServiceStub(grpc.insecure_channel(address))
        fingerprint = kv.Fingerprint(
            model_digest="00", engine="own", engine_build="1", layout="flat", dtype="u8"
        )
        answer = self.store.OpenNamespace(
            kv.OpenNamespaceRequest(
                model=model,
                fingerprint=fingerprint,
                shard=kv.Shard(tensor_size=1, pipeline_size=1),
                block_tokens=block_tokens,
                block_bytes=block_bytes,
                client_name="own",
            ),
            timeout=5,
        )
        self.session = answer.session_id  # renew it within answer.session_ttl_ms: Renew(session_id=...)

    def match(self, tokens: list[int]) -> int:
        """Blocks of the longest stored prefix; the store hashes the token ids."""
        request = kv.MatchRequest(session_id=self.session, tokens=types.TokenIds(ids=tokens))
        return self.store.Match(request, timeout=5).blocks

    def hashes(self, tokens: list[int]) -> list[bytes]:
        """One a whole block, made by the store: keyed, so nobody outside the namespace can guess them."""
        request = ranges.ExplainRequest(session_id=self.session, tokens=types.TokenIds(ids=tokens))
        return [block.hash for block in self.store.Explain(request, timeout=5).blocks]

    def load(self, hashes: list[bytes]) -> list[bytes]:
        """The leading stored run; each block is checked, and a damaged one ends the run."""
        request = kv.AcquireRequest(session_id=self.session, hashes=hashes, lease_ttl_ms=TTL_MS)
        leases = [lease for lease in self.store.Acquire(request, timeout=5).leases if lease.lease_id]
        ids = [lease.lease_id for lease in leases]
        bodies = {lease: bytearray() for lease in ids}
        for frame in self.store.Read(kv.ReadRequest(session_id=self.session, lease_ids=ids), timeout=30):
            bodies[frame.lease_id] += frame.data
        whole = [xxhash.xxh3_64_intdigest(bodies[lease.lease_id]) == lease.checksum for lease in leases]
        damaged = [lease for lease, good in zip(ids, whole) if not good]
        good = [lease for lease in ids if lease not in damaged]
        self.store.Release(
            kv.ReleaseRequest(session_id=self.session, lease_ids=good, damaged_lease_ids=damaged), timeout=5
        )
        return [bytes(bodies[lease]) for lease in ids[: (whole + [False]).index(False)]]

    def save(self, parent: bytes, hashes: list[bytes], blocks: list[bytes]) -> list[int]:
        """Stores a run behind `parent` (empty: the start); a status a block."""
        request = kv.ReserveRequest(
            session_id=self.session, parent=parent, hashes=hashes, lease_ttl_ms=TTL_MS
        )
        leases = self.store.Reserve(request, timeout=5).leases
        return [
            self.store.Write(self._frames(lease.lease_id, block), timeout=30).status
            if lease.lease_id
            else lease.status
            for lease, block in zip(leases, blocks)
        ]

    def _frames(self, lease: int, block: bytes):
        for start in range(0, len(block), FRAME):
            last = start + FRAME >= len(block)
            yield kv.WriteRequest(
                session_id=self.session,
                lease_id=lease,
                data=block[start : start + FRAME],
                checksum=xxhash.xxh3_64_intdigest(block) if last else None,
            )


def main() -> None:
    client = Client(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7440", "own-example", 16, 3 << 20)
    tokens = list(range(70))  # four whole blocks of 16, and a rest that counts for nothing
    hashes = client.hashes(tokens)
    blocks = [bytes([number]) * (3 << 20) for number in range(len(hashes))]  # your engine's KV goes here
    found = client.match(tokens)
    print(f"stored before: {found} of {len(hashes)} blocks")
    statuses = client.save(hashes[found - 1] if found else b"", hashes[found:], blocks[found:])
    print("saved:", [kv.BlockStatus.Name(status) for status in statuses])
    found = client.match(tokens)
    loaded = client.load(hashes[:found])
    print(f"matched {found}, loaded {len(loaded)}, equal: {loaded == blocks[:found]}")


if __name__ == "__main__":
    main()
