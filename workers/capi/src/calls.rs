//! The verbs.

use std::{ptr, slice, sync::LazyLock, time::Duration};

use kelvin_kvstore::{Client, ClientOptions, Namespace, ReadLease, Reserved, SequenceHash, WriteLease};
use kelvin_proto::kv::v1::BlockStatus;
use tokio::runtime::Runtime;

use crate::{
    status::{Failure, KelvinBlockStatus, KelvinStatus, call},
    types::{KelvinHash, KelvinSpec, KelvinTransport, text},
};

/// Blocks of one model in one store.
pub struct KelvinNamespace(Namespace);

/// The right to read one block.
pub struct KelvinReadLease(ReadLease);

/// The right to fill one block.
pub struct KelvinWriteLease(WriteLease);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).thread_name("kelvin").enable_all().build().expect("threads for the client")
});

/// What a pointer from C leads to.
///
/// # Safety
/// Null, or valid for as long as the call runs.
unsafe fn given<'a, T>(name: &str, pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: the caller says so.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::invalid(format!("{name} is null")))
}

/// # Safety
/// `pointer` is null (with a `count` of 0), or leads to `count` values for as long as the call runs.
unsafe fn array<'a, T>(name: &str, pointer: *const T, count: usize) -> Result<&'a [T], Failure> {
    match (pointer.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::invalid(format!("{name} is null"))),
        // SAFETY: the caller says so.
        (false, _) => Ok(unsafe { slice::from_raw_parts(pointer, count) }),
    }
}

fn check_output<T>(name: &str, pointer: *mut T) -> Result<(), Failure> {
    if pointer.is_null() { Err(Failure::invalid(format!("{name} is null"))) } else { Ok(()) }
}

/// # Safety
/// As for [`array`].
unsafe fn hashes(pointer: *const KelvinHash, count: usize) -> Result<Vec<SequenceHash>, Failure> {
    // SAFETY: the caller says so.
    Ok(unsafe { array("hashes", pointer, count) }?.iter().map(|hash| (*hash).into()).collect())
}

/// Connects to a store and agrees with it on what a block is. `*out` is to be closed.
///
/// # Safety
/// `spec` and `out` are valid, and the texts in `spec` end with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_open(
    spec: *const KelvinSpec,
    out: *mut *mut KelvinNamespace,
) -> KelvinStatus {
    call(|| {
        check_output("out", out)?;
        // SAFETY: the caller says that it is valid, and its texts too.
        let (spec, options) = unsafe {
            let given = given("spec", spec)?;
            let endpoint = text("endpoint", given.endpoint)?;
            let endpoint = endpoint.ok_or_else(|| Failure::invalid("endpoint is null"))?;
            let name = text("client_name", given.client_name)?.unwrap_or_else(|| "c".into());
            let token = text("token", given.token)?;
            let shared_memory = !given.no_shared_memory;
            let options = ClientOptions { token, shared_memory, ..ClientOptions::new(endpoint, name) };
            (given.namespace()?, options)
        };
        let namespace = RUNTIME.block_on(async { Client::connect(options).await?.open(spec).await })?;
        // SAFETY: not null, and the caller says that it is valid.
        unsafe { out.write(Box::into_raw(Box::new(KelvinNamespace(namespace)))) };
        Ok(())
    })
}

/// Ends the session: every lease returns, and those still held are good for their release alone. Null is fine.
///
/// # Safety
/// From `kelvin_open`, and not used any more by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_close(namespace: *mut KelvinNamespace) {
    if namespace.is_null() {
        return;
    }
    // SAFETY: made by `Box::into_raw`, and the caller gives it up.
    let namespace = unsafe { Box::from_raw(namespace) };
    call(|| {
        RUNTIME.block_on(namespace.0.close());
        Ok(())
    });
}

/// How payload moves now, to `*out`.
///
/// # Safety
/// Both are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_transport(
    namespace: *const KelvinNamespace,
    out: *mut KelvinTransport,
) -> KelvinStatus {
    call(|| {
        check_output("out", out)?;
        // SAFETY: the caller says so.
        let namespace = unsafe { given("namespace", namespace) }?;
        // SAFETY: not null, and the caller says that it is valid.
        unsafe { out.write(namespace.0.transport().into()) };
        Ok(())
    })
}

/// Hashes of the whole blocks of a prompt. `extra` is whatever else decides the KV (LoRA, images, salt); null with 0
/// bytes for nothing. `hashes` has room for `token_count / block_tokens`. Never waits for the store.
///
/// # Safety
/// The arrays have what is said of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_hash_blocks(
    namespace: *const KelvinNamespace,
    tokens: *const u32,
    token_count: usize,
    extra: *const u8,
    extra_bytes: usize,
    hashes: *mut KelvinHash,
) -> KelvinStatus {
    call(|| {
        // SAFETY: the caller says so.
        let (namespace, tokens, extra) = unsafe {
            let namespace = given("namespace", namespace)?;
            (namespace, array("tokens", tokens, token_count)?, array("extra", extra, extra_bytes)?)
        };
        let found = namespace.0.hash_blocks(tokens, extra);
        if !found.is_empty() {
            check_output("hashes", hashes)?;
        }
        for (at, hash) in found.into_iter().enumerate() {
            // SAFETY: the caller says that there is room for each.
            unsafe { hashes.add(at).write(hash.into()) };
        }
        Ok(())
    })
}

/// How many of the first of these blocks are stored, to `*blocks`.
///
/// # Safety
/// The array has what is said of it, and `blocks` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_match(
    namespace: *const KelvinNamespace,
    hashes: *const KelvinHash,
    count: usize,
    blocks: *mut usize,
) -> KelvinStatus {
    call(|| {
        check_output("blocks", blocks)?;
        // SAFETY: the caller says so.
        let (namespace, hashes) = unsafe { (given("namespace", namespace)?, self::hashes(hashes, count)?) };
        let found = RUNTIME.block_on(namespace.0.match_prefix(&hashes))?;
        // SAFETY: not null, and the caller says that it is valid.
        unsafe { blocks.write(found.blocks as usize) };
        Ok(())
    })
}

/// Leases the first of these blocks that are stored: `*acquired` of them, to `leases`, which has room for `count`.
/// Should the first block be in the making, waits for it up to `wait_ms`. `*stopped`, unless null, says why the run
/// ended before the last. The leases are to be released.
///
/// # Safety
/// The arrays have what is said of them, and `acquired` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_acquire(
    namespace: *const KelvinNamespace,
    hashes: *const KelvinHash,
    count: usize,
    wait_ms: u64,
    leases: *mut *mut KelvinReadLease,
    acquired: *mut usize,
    stopped: *mut KelvinBlockStatus,
) -> KelvinStatus {
    call(|| {
        check_output("acquired", acquired)?;
        check_output("leases", leases)?;
        // SAFETY: the caller says so.
        let (namespace, hashes) = unsafe { (given("namespace", namespace)?, self::hashes(hashes, count)?) };
        let got = RUNTIME.block_on(namespace.0.acquire(&hashes, Duration::from_millis(wait_ms)))?;
        // SAFETY: the outputs are not null but for `stopped`, and the caller says that they are valid and that
        // there is room for every lease.
        unsafe {
            acquired.write(got.leases.len());
            if !stopped.is_null() {
                stopped.write(got.stopped.unwrap_or(BlockStatus::Unspecified).into());
            }
            for (at, lease) in got.leases.into_iter().enumerate() {
                leases.add(at).write(Box::into_raw(Box::new(KelvinReadLease(lease))));
            }
        }
        Ok(())
    })
}

/// A leased block's bytes, checked: valid until the lease is released. The first time costs a pass over them.
///
/// # Safety
/// All are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_read_bytes(
    lease: *const KelvinReadLease,
    bytes: *mut *const u8,
    length: *mut usize,
) -> KelvinStatus {
    call(|| {
        check_output("bytes", bytes)?;
        check_output("length", length)?;
        // SAFETY: the caller says so.
        let found = unsafe { given("lease", lease) }?.0.verified()?;
        // SAFETY: not null, and the caller says that they are valid.
        unsafe {
            bytes.write(found.as_ptr());
            length.write(found.len());
        }
        Ok(())
    })
}

/// Gives leases back, in the background, and sets them to null. Nulls among them are skipped.
///
/// # Safety
/// From `kelvin_acquire`, each once, and their bytes are not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_release(leases: *mut *mut KelvinReadLease, count: usize) {
    // SAFETY: the caller says so.
    unsafe { drop_all(leases, count) };
}

/// Reserves the blocks of a run behind `parent` (null: the start of a sequence). One status a block, to `statuses`;
/// where it is KELVIN_BLOCK_STATUS_RESERVED, a lease to fill, to `leases`, else null. Both have room for `count`.
///
/// # Safety
/// The arrays have what is said of them; `parent` is null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_reserve(
    namespace: *const KelvinNamespace,
    parent: *const KelvinHash,
    hashes: *const KelvinHash,
    count: usize,
    leases: *mut *mut KelvinWriteLease,
    statuses: *mut KelvinBlockStatus,
) -> KelvinStatus {
    call(|| {
        check_output("leases", leases)?;
        check_output("statuses", statuses)?;
        // SAFETY: the caller says so.
        let (namespace, parent, hashes) = unsafe {
            let parent = parent.as_ref().map(|parent| (*parent).into());
            (given("namespace", namespace)?, parent, self::hashes(hashes, count)?)
        };
        let reserved = RUNTIME.block_on(namespace.0.reserve(parent, &hashes))?;
        for (at, block) in reserved.into_iter().take(count).enumerate() {
            let (status, lease) = match block {
                Reserved::Write(lease) => {
                    (BlockStatus::Reserved, Box::into_raw(Box::new(KelvinWriteLease(lease))))
                }
                Reserved::AlreadyStored => (BlockStatus::AlreadyStored, ptr::null_mut()),
                Reserved::Filling => (BlockStatus::Filling, ptr::null_mut()),
                Reserved::NoSpace => (BlockStatus::NoSpace, ptr::null_mut()),
                Reserved::NoParent => (BlockStatus::NoParent, ptr::null_mut()),
                Reserved::Other(status) => (status, ptr::null_mut()),
            };
            // SAFETY: the caller says that there is room for each.
            unsafe {
                statuses.add(at).write(status.into());
                leases.add(at).write(lease);
            }
        }
        Ok(())
    })
}

/// A reserved block's bytes, to fill, all of them: valid until the lease is committed or aborted. One thread at a
/// time.
///
/// # Safety
/// All are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_write_bytes(
    lease: *mut KelvinWriteLease,
    bytes: *mut *mut u8,
    length: *mut usize,
) -> KelvinStatus {
    call(|| {
        check_output("bytes", bytes)?;
        check_output("length", length)?;
        check_output("lease", lease)?;
        // SAFETY: not null, and the caller says that it is valid and used by one thread.
        let found = unsafe { &mut *lease }.0.bytes_mut();
        // SAFETY: not null, and the caller says that they are valid.
        unsafe {
            bytes.write(found.as_mut_ptr());
            length.write(found.len());
        }
        Ok(())
    })
}

/// Commits filled leases, parents first: one status a block, to `statuses`. Whatever it answers, unless it is
/// KELVIN_STATUS_INVALID, the leases are used up and set to null.
///
/// # Safety
/// From `kelvin_reserve`, each once; both arrays have `count` places.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_commit(
    namespace: *const KelvinNamespace,
    leases: *mut *mut KelvinWriteLease,
    count: usize,
    statuses: *mut KelvinBlockStatus,
) -> KelvinStatus {
    call(|| {
        check_output("statuses", statuses)?;
        // SAFETY: the caller says so.
        let (namespace, given) = unsafe { (given("namespace", namespace)?, array("leases", leases, count)?) };
        if given.iter().any(|lease| lease.is_null()) {
            return Err(Failure::invalid("one of the leases is null"));
        }
        let filled = (0..count).map(|at| {
            // SAFETY: made by `Box::into_raw`, not null, and the caller gives each up once.
            unsafe { Box::from_raw(leases.add(at).replace(ptr::null_mut())) }.0
        });
        let filled = filled.collect();
        let found = RUNTIME.block_on(namespace.0.commit(filled))?;
        for (at, status) in found.into_iter().take(count).enumerate() {
            // SAFETY: the caller says that there is room for each.
            unsafe { statuses.add(at).write(status.into()) };
        }
        Ok(())
    })
}

/// Gives reservations back unfilled, in the background, and sets them to null. Nulls among them are skipped.
///
/// # Safety
/// From `kelvin_reserve`, each once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kelvin_abort(leases: *mut *mut KelvinWriteLease, count: usize) {
    // SAFETY: the caller says so.
    unsafe { drop_all(leases, count) };
}

/// # Safety
/// `count` places, each null or from `Box::into_raw` and given up.
unsafe fn drop_all<T>(handles: *mut *mut T, count: usize) {
    if handles.is_null() {
        return;
    }
    for at in 0..count {
        // SAFETY: within the array, by the caller's word.
        let handle = unsafe { handles.add(at).replace(ptr::null_mut()) };
        if !handle.is_null() {
            call(|| {
                // SAFETY: made by `Box::into_raw`, and given up.
                drop(unsafe { Box::from_raw(handle) });
                Ok(())
            });
        }
    }
}
