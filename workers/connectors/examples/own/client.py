"""A KV connector over gRPC from the .proto alone; run: python client.py [HOST:PORT]"""

import sys
import tempfile
from pathlib import Path

import grpc
from grpc_tools import protoc
from xxhash import xxh3_64_intdigest as checksum

PROTO = Path(__file__).resolve().parents[4] / "proto" / "proto"
BLOCK_TOKENS, BLOCK_BYTES, TTL_MS = 16, 1 << 20, 10_000

with tempfile.TemporaryDirectory() as generated:  # a real connector generates once, when it is built
    out = [f"-I{PROTO}", f"--python_out={generated}", f"--grpc_python_out={generated}"]
    protoc.main(["", *out, *map(str, PROTO.glob("kelvin/kv/v1/*.proto"))])
    Path(generated, "kelvin", "__init__.py").touch()  # goes before an installed package of that name
    sys.path.insert(0, generated)
    from kelvin.kv.v1 import kv_pb2 as kv, kv_pb2_grpc, ranges_pb2, types_pb2

store = kv_pb2_grpc.KvServiceStub(grpc.insecure_channel(sys.argv[1] if sys.argv[1:] else "127.0.0.1:7440"))
session = store.OpenNamespace(kv.OpenNamespaceRequest(
    model="own-example", block_tokens=BLOCK_TOKENS, block_bytes=BLOCK_BYTES, client_name="own",
    fingerprint=kv.Fingerprint(model_digest="00", engine="own", engine_build="1", layout="flat", dtype="u8"),
    shard=kv.Shard(tensor_size=1, pipeline_size=1)), timeout=5).session_id


def load(hashes: list[bytes]) -> list[bytes]:
    """Bytes of the leading run that is stored and whole."""
    request = kv.AcquireRequest(session_id=session, hashes=hashes, lease_ttl_ms=TTL_MS)
    leases = {lease.lease_id: lease for lease in store.Acquire(request, timeout=5).leases if lease.lease_id}
    blocks = {lease: bytearray() for lease in leases}
    for frame in store.Read(kv.ReadRequest(session_id=session, lease_ids=leases), timeout=30):
        blocks[frame.lease_id] += frame.data
    bad = [id for id, lease in leases.items() if checksum(blocks[id]) != lease.checksum]
    good = [id for id in leases if id not in bad]
    store.Release(kv.ReleaseRequest(session_id=session, lease_ids=good, damaged_lease_ids=bad), timeout=5)
    return [bytes(block) for block in blocks.values()][: list(leases).index(bad[0]) if bad else None]


def save(lease: int, block: bytes) -> int:
    """Fills a reservation. Larger blocks take more frames; the last has the checksum and commits."""
    frame = kv.WriteRequest(session_id=session, lease_id=lease, data=block, checksum=checksum(block))
    return store.Write(iter([frame]), timeout=30).status


tokens = types_pb2.TokenIds(ids=range(70))  # four whole blocks, and a rest that counts for nothing
explained = store.Explain(ranges_pb2.ExplainRequest(session_id=session, tokens=tokens), timeout=5).blocks
hashes = [block.hash for block in explained]  # or your own: 16 bytes that name a block and all before it
blocks = [bytes([number]) * BLOCK_BYTES for number in range(len(hashes))]  # your engine's KV goes here
match = kv.MatchRequest(session_id=session, tokens=tokens)
found = store.Match(match, timeout=5).blocks
print(f"stored before: {found} of {len(hashes)} blocks")
parent, new = hashes[found - 1] if found else b"", hashes[found:]
request = kv.ReserveRequest(session_id=session, parent=parent, hashes=new, lease_ttl_ms=TTL_MS)
for lease, block in zip(store.Reserve(request, timeout=5).leases, blocks[found:]):
    print(kv.BlockStatus.Name(save(lease.lease_id, block) if lease.lease_id else lease.status))
found = store.Match(match, timeout=5).blocks
loaded = load(hashes[:found])
print(f"matched {found}, loaded {len(loaded)}, equal: {loaded == blocks[:found]}")
