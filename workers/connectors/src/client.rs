//! `kelvin.Client`: a connection to a store.

use kelvin_kvstore::{self as kvstore, ClientOptions};
use kelvin_proto::{NamespaceSpec, Shard};
use pyo3::prelude::*;

use crate::{
    answers, args,
    args::{FingerprintArg, ShardArg},
    namespace::{AsyncNamespace, Namespace},
    runtime::{Mode, awaitable, block},
};

/// A connection whose verbs block.
#[pyclass(frozen, subclass, module = "kelvin")]
pub(crate) struct Client {
    client: kvstore::Client,
    mode: Mode,
    #[pyo3(get)]
    url: String,
}

/// The same with awaitables.
#[pyclass(frozen, extends = Client, module = "kelvin.aio")]
pub(crate) struct AsyncClient;

#[allow(clippy::too_many_arguments)]
fn options(
    url: &str,
    token: Option<String>,
    name: String,
    shared_memory: bool,
    data_port: bool,
    connect_timeout: f64,
    call_timeout: f64,
    lease_ttl: f64,
) -> PyResult<ClientOptions> {
    Ok(ClientOptions {
        token,
        shared_memory,
        data_port,
        connect_timeout: args::duration("connect_timeout", connect_timeout)?,
        call_timeout: args::duration("call_timeout", call_timeout)?,
        lease_ttl: args::duration("lease_ttl", lease_ttl)?,
        ..ClientOptions::new(url, name)
    })
}

/// Connects: an awaitable of an `AsyncClient`.
#[pyfunction]
#[pyo3(signature = (
    url="http://127.0.0.1:7440".to_owned(), token=None, *, name="python".to_owned(), shared_memory=true,
    data_port=true, connect_timeout=2.0, call_timeout=5.0, lease_ttl=30.0,
))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn connect<'py>(
    py: Python<'py>,
    url: String,
    token: Option<String>,
    name: String,
    shared_memory: bool,
    data_port: bool,
    connect_timeout: f64,
    call_timeout: f64,
    lease_ttl: f64,
) -> PyResult<Bound<'py, PyAny>> {
    let options =
        options(&url, token, name, shared_memory, data_port, connect_timeout, call_timeout, lease_ttl)?;
    let verb = async { Ok(kvstore::Client::connect(options).await?) };
    awaitable(py, verb, move |py, client| {
        let base = Client { client, mode: Mode::new(true), url };
        Ok(Py::new(py, PyClassInitializer::from(base).add_subclass(AsyncClient))?.into_any())
    })
}

#[pymethods]
impl Client {
    /// Connects; fails when nobody listens there.
    #[new]
    #[pyo3(signature = (
        url="http://127.0.0.1:7440".to_owned(), token=None, *, name="python".to_owned(), shared_memory=true,
        data_port=true, connect_timeout=2.0, call_timeout=5.0, lease_ttl=30.0,
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        url: String,
        token: Option<String>,
        name: String,
        shared_memory: bool,
        data_port: bool,
        connect_timeout: f64,
        call_timeout: f64,
        lease_ttl: f64,
    ) -> PyResult<Self> {
        let options =
            options(&url, token, name, shared_memory, data_port, connect_timeout, call_timeout, lease_ttl)?;
        let client = block(py, async { Ok(kvstore::Client::connect(options).await?) })?;
        Ok(Self { client, mode: Mode::new(false), url })
    }

    /// Opens a namespace: the handshake.
    #[pyo3(signature = (model, fingerprint, block_tokens, block_bytes, shard=None))]
    fn namespace<'py>(
        &self,
        py: Python<'py>,
        model: String,
        fingerprint: FingerprintArg,
        block_tokens: u32,
        block_bytes: u64,
        shard: Option<ShardArg>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let spec = NamespaceSpec {
            model,
            fingerprint: fingerprint.into(),
            shard: shard.map_or_else(Shard::default, Into::into),
            block_tokens,
            block_bytes,
        };
        let (client, mode) = (self.client.clone(), self.mode);
        let opener = client.clone();
        let verb = async move { Ok(opener.open(spec).await?) };
        mode.run(py, verb, move |py, namespace| {
            let base = Namespace::new(namespace, client, mode);
            Ok(match mode.is_async() {
                false => Py::new(py, base)?.into_any(),
                true => Py::new(py, PyClassInitializer::from(base).add_subclass(AsyncNamespace))?.into_any(),
            })
        })
    }

    /// What the store counts.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let client = self.client.clone();
        self.mode.run(py, async move { Ok(client.stats().await?) }, answers::stats)
    }

    /// Ends pins, by id and by owner.
    #[pyo3(signature = (pin_ids=vec![], owner=String::new()))]
    fn unpin<'py>(&self, py: Python<'py>, pin_ids: Vec<u64>, owner: String) -> PyResult<Bound<'py, PyAny>> {
        let client = self.client.clone();
        let request = kelvin_proto::kv::v1::UnpinRequest { pin_ids, owner };
        self.mode.run(py, async move { Ok(client.unpin(request).await?) }, answers::unpinned)
    }

    fn __repr__(&self) -> String {
        format!("<kelvin.Client {}>", self.url)
    }
}
