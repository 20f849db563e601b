//! `kelvin.Namespace`: the verbs for one model's blocks.

use std::{sync::Arc, time::Duration};

use kelvin_kvstore::{self as kvstore, Keep, Reserved, SequenceHash, Transport};
use kelvin_proto::kv::v1;
use pyo3::{IntoPyObjectExt, exceptions::PyValueError, prelude::*, types::PyBytes};

use crate::{
    answers::{self, BlockStatus, Match},
    args,
    error::Failure,
    lease::{Acquired, ReadLease, WriteLease, hex},
    memory::{Held, Source},
    parts::{self, Parts},
    runtime::Mode,
    watch::{Watch, subscribe},
};

/// A namespace whose verbs block.
#[pyclass(frozen, subclass, weakref, module = "kelvin")]
pub(crate) struct Namespace {
    namespace: kvstore::Namespace,
    client: kvstore::Client,
    mode: Mode,
}

/// The same with awaitables.
#[pyclass(frozen, extends = Namespace, module = "kelvin.aio")]
pub(crate) struct AsyncNamespace;

/// A run of read leases, verified or not, and why it ended.
struct Run {
    held: Vec<(Arc<Held>, v1::Tier)>,
    stopped: Option<BlockStatus>,
}

impl Namespace {
    pub(crate) fn new(namespace: kvstore::Namespace, client: kvstore::Client, mode: Mode) -> Self {
        Self { namespace, client, mode }
    }

    fn block_bytes(&self) -> usize {
        self.namespace.spec().block_bytes as usize
    }

    /// A prefix, as hashes or as token ids.
    fn prefix(&self, prefix: &Bound<'_, PyAny>, extra: &[u8]) -> PyResult<Vec<SequenceHash>> {
        match args::holds_hashes(prefix) {
            true if !extra.is_empty() => {
                Err(PyValueError::new_err("extra goes with token ids: hashes have it in them"))
            }
            true => args::hashes(prefix),
            false => Ok(self.namespace.hash_blocks(&args::tokens(prefix)?, extra)),
        }
    }
}

/// Leases, and checks their bytes where asked to. A damaged block ends the run: it is a miss, and the store
/// is told when its lease goes back.
async fn acquire(
    namespace: &kvstore::Namespace,
    hashes: &[SequenceHash],
    wait: Duration,
    verify: bool,
) -> Result<Run, Failure> {
    let acquired = namespace.acquire(hashes, wait).await?;
    let mut stopped = acquired.stopped.map(BlockStatus::from);
    let mut held = Vec::with_capacity(acquired.leases.len());
    for lease in acquired.leases {
        let tier = lease.tier();
        let lease = Arc::new(Held::new(lease));
        if verify && tokio::task::block_in_place(|| lease.range()).is_err() {
            stopped = Some(BlockStatus::ChecksumMismatch);
            break;
        }
        held.push((lease, tier));
    }
    Ok(Run { held, stopped })
}

fn statuses(statuses: Vec<v1::BlockStatus>) -> Vec<BlockStatus> {
    statuses.into_iter().map(BlockStatus::from).collect()
}

fn status_of(reserved: &Reserved) -> BlockStatus {
    match reserved {
        Reserved::Write(_) => BlockStatus::Reserved,
        Reserved::AlreadyStored => BlockStatus::AlreadyStored,
        Reserved::Filling => BlockStatus::Filling,
        Reserved::NoSpace => BlockStatus::NoSpace,
        Reserved::NoParent => BlockStatus::NoParent,
        Reserved::Other(status) => (*status).into(),
    }
}

fn keep(priority: i8, block_ttl: Option<f64>) -> PyResult<Keep> {
    let ttl = block_ttl.map(|ttl| args::duration("block_ttl", ttl)).transpose()?;
    Ok(Keep { priority, ttl })
}

/// What to read.
#[derive(FromPyObject)]
enum Readable<'py> {
    Lease(Bound<'py, ReadLease>),
    Hash(Bound<'py, PyBytes>),
}

#[pymethods]
impl Namespace {
    #[getter]
    fn model(&self) -> &str {
        &self.namespace.spec().model
    }

    #[getter]
    fn block_tokens(&self) -> u32 {
        self.namespace.spec().block_tokens
    }

    #[getter(block_bytes)]
    fn block_bytes_py(&self) -> usize {
        self.block_bytes()
    }

    /// The store's number of it, for this start of the store.
    #[getter]
    fn id(&self) -> u64 {
        self.namespace.namespace_id()
    }

    /// How payload moves now.
    #[getter]
    fn transport(&self) -> &'static str {
        match self.namespace.transport() {
            Transport::Shm => "shm",
            Transport::Tcp => "tcp",
            Transport::Grpc => "grpc",
        }
    }

    /// Hashes of the whole blocks of a prompt. Never waits for the store.
    #[pyo3(signature = (tokens, extra=vec![]))]
    fn hashes<'py>(
        &self,
        py: Python<'py>,
        tokens: &Bound<'py, PyAny>,
        extra: Vec<u8>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let tokens = args::tokens(tokens)?;
        let hashes = py.detach(|| self.namespace.hash_blocks(&tokens, &extra));
        Ok(hashes.iter().map(|hash| PyBytes::new(py, &hash.to_bytes())).collect())
    }

    /// The longest stored prefix.
    #[pyo3(signature = (prefix, extra=vec![]))]
    fn r#match<'py>(
        &self,
        py: Python<'py>,
        prefix: &Bound<'py, PyAny>,
        extra: Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hashes = self.prefix(prefix, &extra)?;
        let namespace = self.namespace.clone();
        let verb = async move { Ok(namespace.match_prefix(&hashes).await?) };
        self.mode.run(py, verb, |_, found| Ok(Match::from(found)))
    }

    /// Leases on the leading run that is stored.
    #[pyo3(signature = (hashes, wait=0.0, verify=true))]
    fn acquire<'py>(
        &self,
        py: Python<'py>,
        hashes: &Bound<'py, PyAny>,
        wait: f64,
        verify: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hashes = args::hashes(hashes)?;
        let wait = args::duration("wait", wait)?;
        let namespace = self.namespace.clone();
        let bytes = self.block_bytes();
        let verb = async move { acquire(&namespace, &hashes, wait, verify).await };
        self.mode.run(py, verb, move |py, run: Run| {
            let leases = run.held.into_iter();
            let leases = leases.map(|(held, tier)| ReadLease::new(py, held, tier, bytes)).collect();
            Acquired::new(py, leases, run.stopped)
        })
    }

    /// The same without the bytes, of which parts are read.
    #[pyo3(signature = (hashes, wait=0.0))]
    fn lease<'py>(
        &self,
        py: Python<'py>,
        hashes: &Bound<'py, PyAny>,
        wait: f64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hashes = args::hashes(hashes)?;
        let wait = args::duration("wait", wait)?;
        let (namespace, mode) = (self.namespace.clone(), self.mode);
        let verb = async move {
            let leased = parts::lease(&namespace, &hashes, wait).await?;
            Ok((namespace, leased))
        };
        self.mode.run(py, verb, move |_, (namespace, leased)| Ok(Parts::new(namespace, mode, leased)))
    }

    /// Reserves a run behind `parent`: a lease to fill or a status a block.
    #[pyo3(signature = (parent, hashes, priority=0, block_ttl=None))]
    fn reserve<'py>(
        &self,
        py: Python<'py>,
        parent: Option<&Bound<'py, PyAny>>,
        hashes: &Bound<'py, PyAny>,
        priority: i8,
        block_ttl: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let parent = parent.map(args::hash).transpose()?;
        let hashes = args::hashes(hashes)?;
        let keep = keep(priority, block_ttl)?;
        let namespace = self.namespace.clone();
        let bytes = self.block_bytes();
        let verb = async move { Ok(namespace.reserve_to_keep(parent, &hashes, keep).await?) };
        self.mode.run(py, verb, move |py, reserved: Vec<Reserved>| {
            let item = |reserved| match reserved {
                Reserved::Write(lease) => WriteLease::new(py, lease, bytes).into_py_any(py),
                other => status_of(&other).into_py_any(py),
            };
            reserved.into_iter().map(item).collect::<PyResult<Vec<_>>>()
        })
    }

    /// Seals filled leases, parents first: a status a block.
    fn commit<'py>(
        &self,
        py: Python<'py>,
        leases: Vec<Bound<'py, WriteLease>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let filled = WriteLease::take(&leases)?;
        let namespace = self.namespace.clone();
        let verb = async move { Ok(namespace.commit(filled).await?) };
        self.mode.run(py, verb, |_, answer| Ok(statuses(answer)))
    }

    /// Gives reservations back.
    #[staticmethod]
    fn abort(leases: Vec<Bound<'_, WriteLease>>) {
        leases.iter().for_each(|lease| lease.get().abort());
    }

    /// Gives read leases back.
    #[staticmethod]
    fn release(leases: Vec<Bound<'_, ReadLease>>) {
        leases.iter().for_each(|lease| lease.get().release());
    }

    /// One block's bytes, as a copy.
    fn read<'py>(&self, py: Python<'py>, block: Readable<'py>) -> PyResult<Bound<'py, PyAny>> {
        let namespace = self.namespace.clone();
        let held = match block {
            Readable::Lease(lease) => Ok(lease.get().held()?),
            Readable::Hash(hash) => Err(args::hash(hash.as_any())?),
        };
        let verb = async move {
            let held = match held {
                Ok(held) => held,
                Err(hash) => {
                    let run = acquire(&namespace, &[hash], Duration::ZERO, false).await?;
                    let missing = || Failure::Missing(format!("block {hash} is not stored"));
                    run.held.into_iter().next().ok_or_else(missing)?.0
                }
            };
            tokio::task::block_in_place(|| held.range())?;
            Ok(held)
        };
        self.mode.run(py, verb, |py, held: Arc<Held>| {
            Ok(PyBytes::new(py, held.bytes().map_err(Failure::from)?).unbind())
        })
    }

    /// Reserves, fills with copies and commits: a status a block.
    #[pyo3(signature = (parent, hashes, blocks, priority=0, block_ttl=None))]
    fn write<'py>(
        &self,
        py: Python<'py>,
        parent: Option<&Bound<'py, PyAny>>,
        hashes: &Bound<'py, PyAny>,
        blocks: &Bound<'py, PyAny>,
        priority: i8,
        block_ttl: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let parent = parent.map(args::hash).transpose()?;
        let hashes = args::hashes(hashes)?;
        let sources: Vec<Source> =
            blocks.try_iter()?.map(|block| Source::get(&block?)).collect::<PyResult<_>>()?;
        if sources.len() != hashes.len() {
            let (blocks, hashes) = (sources.len(), hashes.len());
            return Err(PyValueError::new_err(format!("{blocks} blocks for {hashes} hashes")));
        }
        let bytes = self.block_bytes();
        for (source, hash) in sources.iter().zip(&hashes) {
            let found = source.bytes().len();
            if found != bytes {
                let hash = hex(&hash.to_bytes());
                return Err(PyValueError::new_err(format!("block {hash} has {found} bytes, not {bytes}")));
            }
        }
        let keep = keep(priority, block_ttl)?;
        let namespace = self.namespace.clone();
        let verb = async move {
            let reserved = namespace.reserve_to_keep(parent, &hashes, keep).await?;
            let mut answer: Vec<BlockStatus> = reserved.iter().map(status_of).collect();
            let mut filled = Vec::new();
            let mut positions = Vec::new();
            tokio::task::block_in_place(|| {
                for (position, (reserved, source)) in reserved.into_iter().zip(&sources).enumerate() {
                    if let Reserved::Write(mut lease) = reserved {
                        lease.fill(source.bytes());
                        filled.push(lease);
                        positions.push(position);
                    }
                }
            });
            for (position, status) in positions.into_iter().zip(namespace.commit(filled).await?) {
                answer[position] = status.into();
            }
            Ok(answer)
        };
        self.mode.run(py, verb, |_, answer| Ok(answer))
    }

    /// Begins to bring a prefix's blocks into the store's memory.
    #[pyo3(signature = (prefix, extra=vec![]))]
    fn prefetch<'py>(
        &self,
        py: Python<'py>,
        prefix: &Bound<'py, PyAny>,
        extra: Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hashes = self.prefix(prefix, &extra)?;
        let namespace = self.namespace.clone();
        self.mode.run(py, async move { Ok(namespace.prefetch(&hashes).await?) }, answers::prefetched)
    }

    /// Keeps a prefix's stored blocks: for `ttl` seconds, or until `unpin`.
    #[pyo3(signature = (prefix, ttl=None, extra=vec![]))]
    fn pin<'py>(
        &self,
        py: Python<'py>,
        prefix: &Bound<'py, PyAny>,
        ttl: Option<f64>,
        extra: Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hashes = self.prefix(prefix, &extra)?;
        let ttl = ttl.map(|ttl| args::duration("ttl", ttl)).transpose()?;
        let namespace = self.namespace.clone();
        self.mode.run(py, async move { Ok(namespace.pin(&hashes, ttl).await?) }, answers::pinned)
    }

    /// Ends a pin.
    fn unpin<'py>(&self, py: Python<'py>, pin_id: u64) -> PyResult<Bound<'py, PyAny>> {
        let client = self.client.clone();
        let request = v1::UnpinRequest { pin_ids: vec![pin_id], owner: String::new() };
        self.mode.run(py, async move { Ok(client.unpin(request).await?) }, answers::unpinned)
    }

    /// Drops the last block of a prefix and all behind it.
    #[pyo3(signature = (prefix, extra=vec![]))]
    fn evict<'py>(
        &self,
        py: Python<'py>,
        prefix: &Bound<'py, PyAny>,
        extra: Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hashes = self.prefix(prefix, &extra)?;
        if hashes.is_empty() {
            return Err(PyValueError::new_err("no whole block to evict; evict_all drops every one"));
        }
        let namespace = self.namespace.clone();
        self.mode.run(py, async move { Ok(namespace.evict(&hashes).await?) }, answers::evicted)
    }

    /// Drops every block of the namespace.
    fn evict_all<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let namespace = self.namespace.clone();
        self.mode.run(py, async move { Ok(namespace.evict(&[]).await?) }, answers::evicted)
    }

    /// Why each block is not stored, or where it is.
    #[pyo3(signature = (prefix, extra=vec![]))]
    fn explain<'py>(
        &self,
        py: Python<'py>,
        prefix: &Bound<'py, PyAny>,
        extra: Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hashes = self.prefix(prefix, &extra)?;
        let namespace = self.namespace.clone();
        self.mode.run(py, async move { Ok(namespace.explain(&hashes).await?) }, answers::explained)
    }

    /// Says that a conversation is over: the number of blocks that only it used, which go first now.
    #[pyo3(signature = (prefix, extra=vec![]))]
    fn end_session<'py>(
        &self,
        py: Python<'py>,
        prefix: &Bound<'py, PyAny>,
        extra: Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let hashes = self.prefix(prefix, &extra)?;
        let namespace = self.namespace.clone();
        let verb = async move { Ok(namespace.end_session(&hashes).await?.demoted_blocks) };
        self.mode.run(py, verb, |_, blocks| Ok(blocks))
    }

    /// What the store counts.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let client = self.client.clone();
        self.mode.run(py, async move { Ok(client.stats().await?) }, answers::stats)
    }

    /// Block events: a snapshot, then live; or from where a former watch ended.
    #[pyo3(signature = (cursor=0, incarnation=0))]
    fn watch<'py>(&self, py: Python<'py>, cursor: u64, incarnation: u64) -> PyResult<Bound<'py, PyAny>> {
        let (client, id, mode) = (self.client.clone(), self.namespace.namespace_id(), self.mode);
        let verb = async move { subscribe(client, id, cursor, incarnation).await };
        mode.run(py, verb, move |py, messages| Watch::open(py, messages, mode))
    }

    /// Ends the session: every lease of it returns, and verbs fail from here on.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let namespace = self.namespace.clone();
        let verb = async move {
            namespace.close().await;
            Ok(())
        };
        self.mode.run(py, verb, |py, ()| Ok(py.None()))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py).map(drop)
    }

    fn __repr__(&self) -> String {
        let spec = self.namespace.spec();
        let (model, tokens, bytes) = (&spec.model, spec.block_tokens, spec.block_bytes);
        format!("<kelvin.Namespace {model}: blocks of {tokens} tokens, {bytes} bytes, {}>", self.transport())
    }
}
