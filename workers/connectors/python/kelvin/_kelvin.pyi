"""Types and contracts of the native half."""

from asyncio import Future
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypedDict, overload

from typing_extensions import Buffer

from kelvin.identity import Fingerprint, Shard

Tier: TypeAlias = Literal["hbm", "dram", "nvme", "object", "unknown"]
Transport: TypeAlias = Literal["shm", "tcp", "grpc"]
Tokens: TypeAlias = Sequence[int] | Buffer
"""Token ids, 0 to 2**32 - 1: a sequence, or a one-dimensional buffer of 32- or 64-bit integers."""
Hashes: TypeAlias = Sequence[bytes]
"""Block hashes of 16 bytes, each the parent of the next."""
Prefix: TypeAlias = Hashes | Tokens
"""A prompt from its start: hashes, or token ids, whose last incomplete block counts for nothing."""

class BlockStatus:
    """What became of one block of a batch."""

    LEASED: BlockStatus
    MISSING: BlockStatus
    """Not stored, nor being filled."""
    FILLING: BlockStatus
    """Being filled by another session."""
    RESERVED: BlockStatus
    ALREADY_STORED: BlockStatus
    STORED: BlockStatus
    CONFLICT: BlockStatus
    """Stored before with other bytes; the first copy stays."""
    NO_SPACE: BlockStatus
    """No slot is free and none can be evicted."""
    STALE_LEASE: BlockStatus
    """The lease ended, mostly with a store that was restarted."""
    CHECKSUM_MISMATCH: BlockStatus
    OK: BlockStatus
    SKIPPED: BlockStatus
    """Not looked at, because an earlier block of the batch ended the run."""
    NO_PARENT: BlockStatus
    """The parent is neither stored nor reserved."""
    LEASE_LIMIT: BlockStatus
    """One too many leases for this session."""
    UNKNOWN: BlockStatus

class Match:
    """What the store has of a prompt."""

    @property
    def blocks(self) -> int:
        """Blocks of the longest stored prefix."""
    @property
    def tokens(self) -> int:
        """Tokens they stand for."""
    @property
    def filling_blocks(self) -> int:
        """Blocks right behind them that are being filled."""
    @property
    def tiers(self) -> list[Tier]:
        """Hottest tier of each matched block."""
    @property
    def restorable_tokens(self) -> list[int]:
        """Prefix lengths, in tokens, at which an engine can resume."""
    @property
    def loads(self) -> list[tuple[Tier, int, int]]:
        """By tier below memory: blocks that come from there, expected microseconds (0: not measured yet)."""
    @property
    def load_us_estimate(self) -> int:
        """Expected microseconds to bring all matched blocks into memory."""

class ReadLease(Buffer):
    """A block's bytes, read-only, in the store's memory (``shm``) or in a copy (``grpc``).

    Gives ``memoryview(lease)``, ``numpy.frombuffer(lease, ...)`` and ``torch.from_dlpack(lease)`` with no copy
    (the latter a tensor of uint8; torch does not know read-only memory: do not write there). Goes back to the
    store when released or dropped, and never before the last such view. ``torch.frombuffer(lease, ...)`` keeps
    the object but no view: with it, the lease goes back with this object.
    """

    @property
    def hash(self) -> bytes: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def tier(self) -> Tier:
        """Where the block was when it was leased."""
    @property
    def released(self) -> bool: ...
    def release(self) -> None: ...
    def tobytes(self) -> bytes: ...
    def __bytes__(self) -> bytes: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

class WriteLease(Buffer):
    """A block's bytes to fill, all of them, then to commit. What they hold before is undefined.

    Views as of :class:`ReadLease`, writable; for consumers that keep no view (``torch.frombuffer``,
    ``file.readinto``) give them ``memoryview(lease)``. Dropped or aborted, the reservation goes back with the
    last view.
    """

    @property
    def hash(self) -> bytes: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def open(self) -> bool:
        """Neither committed nor aborted."""
    def fill(self, data: Buffer) -> None:
        """Copies a whole block in (contiguous, of any type), making its checksum on the way."""
    def abort(self) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

class Acquired(Sequence[ReadLease]):
    """Leases on a leading run of what was asked for. As a context manager it releases all of them."""

    @property
    def stopped(self) -> BlockStatus | None:
        """Why the run ended before the last hash; ``CHECKSUM_MISMATCH`` where a block was damaged."""
    def release(self) -> None: ...
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int) -> ReadLease: ...
    @overload
    def __getitem__(self, index: slice) -> list[ReadLease]: ...
    def __iter__(self) -> Iterator[ReadLease]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

class Parts:
    """Leases on a leading run of what was asked for, without the bytes. As a context manager it releases them."""

    @property
    def stopped(self) -> BlockStatus | None:
        """Why the run ended before the last hash."""
    @property
    def hashes(self) -> list[bytes]: ...
    def read(self, offset: int, nbytes: int) -> list[bytes]:
        """So many bytes of each block from ``offset`` on: a few layers of all of them, say.

        Shorter than the run when the store does not have one of them (any more). What travels is checked on its
        way; a block's own checksum is over all of it, so that a part does not tell whether the store has the
        block as it was committed.
        """
    def __len__(self) -> int: ...
    def release(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

class _AsyncParts(Parts):
    """The same with awaitables. It is a :class:`Parts` at run time."""

    def read(self, offset: int, nbytes: int) -> Future[list[bytes]]: ...  # type: ignore[override]

class Prefetched(TypedDict):
    """Blocks of a prefix: in memory, on their way, not queued (ask again), in no tier."""

    ready_blocks: int
    queued_blocks: int
    refused_blocks: int
    missing_blocks: int

class Pinned(TypedDict):
    """``pin_id`` is 0 when nothing of the prefix is stored."""

    pin_id: int
    blocks: int
    bytes: int
    missing_blocks: int

class Unpinned(TypedDict):
    """Pins ended, and blocks that no pin keeps any more."""

    pins: int
    blocks: int

class Evicted(TypedDict):
    """``kept_blocks`` are leased or pinned, or a block behind them is."""

    evicted_blocks: int
    evicted_bytes: int
    kept_blocks: int

class Explanation(TypedDict):
    """``reason`` is ``stored``, ``never_stored``, ``evicted``, ...: the words of ``MissReason`` in the proto."""

    hash: bytes
    reason: str
    tiers: list[Tier]
    lost_from: Tier | None
    age_seconds: float | None
    pinned: bool

class Event(TypedDict):
    """A block came or went; ``parent`` is None at the start of a sequence."""

    kind: Literal["stored", "removed"]
    hash: bytes
    parent: bytes | None
    tier: Tier

class Events(TypedDict):
    """One message. ``cursor`` and ``incarnation`` resume a watch behind it; ``lost`` counts dropped events,
    after which a snapshot follows; at ``snapshot_begin``, forget what came before."""

    cursor: int
    incarnation: int
    lost: int
    snapshot_begin: bool
    snapshot_end: bool
    events: list[Event]

class Watch:
    """Block events, message by message; ends with the store."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> Events: ...
    def close(self) -> None: ...

class Client:
    """A connection to a store. All times are in seconds."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:7440",
        token: str | None = None,
        *,
        name: str = "python",
        shared_memory: bool = True,
        data_port: bool = True,
        connect_timeout: float = 2.0,
        call_timeout: float = 5.0,
        lease_ttl: float = 30.0,
    ) -> None:
        """Connects; :class:`kelvin.Unavailable` when nobody listens there.

        ``name`` is who this is, for the store's logs. ``call_timeout`` comes on top of what a call asks the store
        to wait. Leases are renewed in the background; ``lease_ttl`` is when those of a process that hangs end.
        """
    @property
    def url(self) -> str: ...
    def namespace(
        self,
        model: str,
        fingerprint: Fingerprint,
        block_tokens: int,
        block_bytes: int,
        shard: Shard | None = None,
    ) -> Namespace:
        """The handshake for one model's blocks; :class:`kelvin.FingerprintMismatch` names both."""
    def stats(self) -> Mapping[str, Any]: ...
    def unpin(self, pin_ids: Sequence[int] = (), owner: str = "") -> Unpinned: ...

class Namespace:
    """An open handshake. The session is renewed in the background, opened again when the store was restarted
    (verbs raise a retryable error meanwhile), and ends with the object, its leases, or :meth:`close`."""

    @property
    def model(self) -> str: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def id(self) -> int: ...
    @property
    def transport(self) -> Transport:
        """How payload moves now: in place in the store's memory, or inside gRPC."""
    def hashes(self, tokens: Tokens, extra: bytes = b"") -> list[bytes]:
        """Hashes of a prompt's whole blocks. ``extra`` is whatever else decides the KV: LoRA, image, salt."""
    def match(self, prefix: Prefix, extra: bytes = b"") -> Match: ...
    def acquire(self, hashes: Hashes, wait: float = 0.0, verify: bool = True) -> Acquired:
        """Leases the leading run of ``hashes`` that is stored, bringing it into memory.

        Should the first be in the making, waits for it up to ``wait`` seconds. With ``verify`` the bytes are
        checked now, and a damaged block ends the run; without, when they are first looked at. The store looks at
        a bounded number of hashes in a call (8,192): a run that ends there has not ``stopped``.
        """
    def lease(self, hashes: Hashes, wait: float = 0.0) -> Parts:
        """The same without the bytes: :meth:`Parts.read` gets as much of each block as is wanted."""
    def reserve(
        self,
        parent: bytes | None,
        hashes: Hashes,
        priority: int = 0,
        block_ttl: float | None = None,
    ) -> list[WriteLease | BlockStatus]:
        """Reserves the run behind ``parent`` (None: the start): a lease to fill, or why not, for each."""
    def commit(self, leases: Sequence[WriteLease]) -> list[BlockStatus]:
        """Seals filled leases, parents first. :class:`BufferError` while a view of one of them lives."""
    @staticmethod
    def abort(leases: Sequence[WriteLease]) -> None: ...
    @staticmethod
    def release(leases: Sequence[ReadLease]) -> None: ...
    def read(self, block: ReadLease | bytes) -> bytes:
        """One block's bytes as a copy; :class:`kelvin.UnknownBlock` where it is not stored."""
    def write(
        self,
        parent: bytes | None,
        hashes: Hashes,
        blocks: Sequence[Buffer],
        priority: int = 0,
        block_ttl: float | None = None,
    ) -> list[BlockStatus]:
        """Reserves, copies in and commits a run behind ``parent``."""
    def prefetch(self, prefix: Prefix, extra: bytes = b"") -> Prefetched: ...
    def pin(self, prefix: Prefix, ttl: float | None = None, extra: bytes = b"") -> Pinned: ...
    def unpin(self, pin_id: int) -> Unpinned: ...
    def evict(self, prefix: Prefix, extra: bytes = b"") -> Evicted:
        """Drops the last block of the prefix and everything behind it."""
    def evict_all(self) -> Evicted: ...
    def explain(self, prefix: Prefix, extra: bytes = b"") -> list[Explanation]: ...
    def end_session(self, prefix: Prefix, extra: bytes = b"") -> int:
        """Says that a conversation is over; blocks that only it used, which go first from now on."""
    def stats(self) -> Mapping[str, Any]: ...
    def watch(self, cursor: int = 0, incarnation: int = 0) -> Watch: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

class AsyncWatch:
    """As :class:`Watch`."""

    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Future[Events]: ...
    def close(self) -> None: ...

class AsyncClient:
    """As :class:`Client`."""

    @property
    def url(self) -> str: ...
    def namespace(
        self,
        model: str,
        fingerprint: Fingerprint,
        block_tokens: int,
        block_bytes: int,
        shard: Shard | None = None,
    ) -> Future[AsyncNamespace]: ...
    def stats(self) -> Future[Mapping[str, Any]]: ...
    def unpin(self, pin_ids: Sequence[int] = (), owner: str = "") -> Future[Unpinned]: ...

class AsyncNamespace:
    """As :class:`Namespace`."""

    @property
    def model(self) -> str: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def id(self) -> int: ...
    @property
    def transport(self) -> Transport: ...
    def hashes(self, tokens: Tokens, extra: bytes = b"") -> list[bytes]: ...
    def match(self, prefix: Prefix, extra: bytes = b"") -> Future[Match]: ...
    def acquire(self, hashes: Hashes, wait: float = 0.0, verify: bool = True) -> Future[Acquired]: ...
    def lease(self, hashes: Hashes, wait: float = 0.0) -> Future[_AsyncParts]: ...
    def reserve(
        self,
        parent: bytes | None,
        hashes: Hashes,
        priority: int = 0,
        block_ttl: float | None = None,
    ) -> Future[list[WriteLease | BlockStatus]]: ...
    def commit(self, leases: Sequence[WriteLease]) -> Future[list[BlockStatus]]: ...
    @staticmethod
    def abort(leases: Sequence[WriteLease]) -> None: ...
    @staticmethod
    def release(leases: Sequence[ReadLease]) -> None: ...
    def read(self, block: ReadLease | bytes) -> Future[bytes]: ...
    def write(
        self,
        parent: bytes | None,
        hashes: Hashes,
        blocks: Sequence[Buffer],
        priority: int = 0,
        block_ttl: float | None = None,
    ) -> Future[list[BlockStatus]]: ...
    def prefetch(self, prefix: Prefix, extra: bytes = b"") -> Future[Prefetched]: ...
    def pin(self, prefix: Prefix, ttl: float | None = None, extra: bytes = b"") -> Future[Pinned]: ...
    def unpin(self, pin_id: int) -> Future[Unpinned]: ...
    def evict(self, prefix: Prefix, extra: bytes = b"") -> Future[Evicted]: ...
    def evict_all(self) -> Future[Evicted]: ...
    def explain(self, prefix: Prefix, extra: bytes = b"") -> Future[list[Explanation]]: ...
    def end_session(self, prefix: Prefix, extra: bytes = b"") -> Future[int]: ...
    def stats(self) -> Future[Mapping[str, Any]]: ...
    def watch(self, cursor: int = 0, incarnation: int = 0) -> Future[AsyncWatch]: ...
    def close(self) -> Future[None]: ...

def connect(
    url: str = "http://127.0.0.1:7440",
    token: str | None = None,
    *,
    name: str = "python",
    shared_memory: bool = True,
    data_port: bool = True,
    connect_timeout: float = 2.0,
    call_timeout: float = 5.0,
    lease_ttl: float = 30.0,
) -> Future[AsyncClient]: ...
