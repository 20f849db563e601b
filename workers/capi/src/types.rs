//! What goes in and comes out.

use std::ffi::{CStr, c_char};

use kelvin_kvstore::{SequenceHash, Transport};
use kelvin_proto::{Fingerprint, NamespaceSpec, Shard};

use crate::status::Failure;

/// Identity of a block and of all blocks before it. Any 16 bytes that name both will do.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KelvinHash {
    /// The bytes.
    pub bytes: [u8; 16],
}

/// A store, a model, and what a block of it looks like. All zero but for what is needed is fine; text is UTF-8.
#[repr(C)]
pub struct KelvinSpec {
    /// "http://host:port".
    pub endpoint: *const c_char,
    /// Who this is, for the store's logs; may be null.
    pub client_name: *const c_char,
    /// Bearer token; may be null.
    pub token: *const c_char,
    /// Public name of the model.
    pub model: *const c_char,
    /// Digest of the model's weights, lowercase hex.
    pub model_digest: *const c_char,
    /// Engine whose state format the blocks hold.
    pub engine: *const c_char,
    /// The build of it.
    pub engine_build: *const c_char,
    /// Order of the bytes inside a block.
    pub layout: *const c_char,
    /// Type of one KV element.
    pub dtype: *const c_char,
    /// Tokens a block.
    pub block_tokens: u32,
    /// Bytes a block.
    pub block_bytes: u64,
    /// Which slice of the model, of how many; 0 of 0 is the whole.
    pub tensor_rank: u32,
    /// See `tensor_rank`.
    pub tensor_size: u32,
    /// Which stage of the model, of how many; 0 of 0 is the whole.
    pub pipeline_rank: u32,
    /// See `pipeline_rank`.
    pub pipeline_size: u32,
    /// Never map the store's memory.
    pub no_shared_memory: bool,
}

/// How payload moves.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KelvinTransport {
    /// In place, in the store's memory.
    Shm = 0,
    /// Through the store's data port.
    Tcp = 1,
    /// Inside gRPC.
    Grpc = 2,
}

impl From<Transport> for KelvinTransport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Shm => Self::Shm,
            Transport::Tcp => Self::Tcp,
            Transport::Grpc => Self::Grpc,
        }
    }
}

impl From<SequenceHash> for KelvinHash {
    fn from(hash: SequenceHash) -> Self {
        Self { bytes: hash.to_bytes() }
    }
}

impl From<KelvinHash> for SequenceHash {
    fn from(hash: KelvinHash) -> Self {
        Self::from_bytes(hash.bytes)
    }
}

/// Text from C; `None` for null.
///
/// # Safety
/// Null, or a string that ends with a zero.
pub(crate) unsafe fn text(name: &str, text: *const c_char) -> Result<Option<String>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, and the caller says that it ends.
    let text = unsafe { CStr::from_ptr(text) };
    let text = text.to_str().map_err(|_| Failure::invalid(format!("{name} is not UTF-8")))?;
    Ok(Some(text.to_owned()))
}

impl KelvinSpec {
    /// # Safety
    /// Each text is null or ends with a zero.
    pub(crate) unsafe fn namespace(&self) -> Result<NamespaceSpec, Failure> {
        let needed = |name: &str, value: *const c_char| {
            // SAFETY: the caller says so.
            unsafe { text(name, value) }?.ok_or_else(|| Failure::invalid(format!("{name} is null")))
        };
        if self.block_tokens == 0 || self.block_bytes == 0 {
            return Err(Failure::invalid("block_tokens and block_bytes must be at least 1"));
        }
        let slice = |rank: u32, size: u32| if size == 0 { (0, 1) } else { (rank, size) };
        Ok(NamespaceSpec {
            model: needed("model", self.model)?,
            fingerprint: Fingerprint {
                model_digest: needed("model_digest", self.model_digest)?,
                engine: needed("engine", self.engine)?,
                engine_build: needed("engine_build", self.engine_build)?,
                layout: needed("layout", self.layout)?,
                dtype: needed("dtype", self.dtype)?,
                attributes: Default::default(),
            },
            shard: Shard {
                tensor: slice(self.tensor_rank, self.tensor_size),
                pipeline: slice(self.pipeline_rank, self.pipeline_size),
            },
            block_tokens: self.block_tokens,
            block_bytes: self.block_bytes,
        })
    }
}
