//! One operation on its way through an engine, whatever its buffer and place are.
//!
//! # Cancellation
//! The buffer and the place go into the request and come back with its answer. A caller that stops waiting
//! leaves both with the engine, which drops them when the kernel is done: nobody else writes the buffer, and
//! no other block gets the slot, while an operation runs.
//!
//! # Invariants
//! A request is answered once: when it is settled, or with an error when it is dropped.

use std::{
    io,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::health::{Health, Kind};
use crate::DeviceError;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Fill the memory.
    Read,
    /// Store the memory.
    Write,
    /// Bring everything written to the medium.
    Sync,
    /// Write and read the scratch page.
    Look,
}

/// An operation with what belongs to it.
pub(super) struct Request {
    pub(super) action: Action,
    /// First byte, in the file.
    pub(super) offset: u64,
    /// End of the place, in the file. What follows it up to the page's end is padding.
    pub(super) place_end: u64,
    memory: *mut u8,
    bytes: usize,
    /// A look's results.
    write_ok: AtomicBool,
    /// From `Box::into_raw`; taken when the request is settled or dropped.
    payload: Option<NonNull<dyn Payload>>,
    /// Its place in a queue, given up before the answer.
    queued: Option<OwnedSemaphorePermit>,
}

// SAFETY: the payload is `Send` (the constructors ask for it), and the memory is the payload's own, reached
// by whoever holds the request.
unsafe impl Send for Request {}

/// Who waits for a request.
trait Payload {
    fn settle(self: Box<Self>, result: io::Result<()>, write_ok: bool);
}

/// A place, a buffer and the answer, while both are out.
pub(super) type Answer<P, B> = (P, B, Result<(), DeviceError>);

type Awaited<P, B> = oneshot::Receiver<Answer<P, B>>;

struct Transfer<P, B> {
    content: Option<(P, B)>,
    reply: Option<oneshot::Sender<Answer<P, B>>>,
    kind: Kind,
    bytes: u64,
    health: Arc<Health>,
}

impl<P, B> Transfer<P, B> {
    fn answer(&mut self, result: io::Result<()>) {
        let (Some((place, buffer)), Some(reply)) = (self.content.take(), self.reply.take()) else { return };
        self.health.note(self.kind, self.bytes, &result);
        let action = match self.kind {
            Kind::Read => "read block",
            Kind::Write => "write block",
        };
        // Who waits for it may be gone; the place and the buffer are dropped then.
        let _ = reply.send((place, buffer, result.map_err(|source| DeviceError::Io { action, source })));
    }
}

impl<P, B> Payload for Transfer<P, B> {
    fn settle(mut self: Box<Self>, result: io::Result<()>, _write_ok: bool) {
        self.answer(result);
    }
}

impl<P, B> Drop for Transfer<P, B> {
    fn drop(&mut self) {
        self.answer(Err(io::Error::other("the engine stopped")));
    }
}

struct Sync(Option<oneshot::Sender<Result<(), DeviceError>>>, Arc<Health>);

impl Payload for Sync {
    fn settle(mut self: Box<Self>, result: io::Result<()>, _write_ok: bool) {
        if result.is_err() {
            self.1.note(Kind::Write, 0, &result);
        }
        if let Some(reply) = self.0.take() {
            let _ = reply.send(result.map_err(|source| DeviceError::Io { action: "sync blocks", source }));
        }
    }
}

struct Look(Arc<Health>, bool);

impl Payload for Look {
    fn settle(mut self: Box<Self>, result: io::Result<()>, write_ok: bool) {
        self.1 = true;
        self.0.looked(write_ok, result.is_ok());
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if !self.1 {
            self.0.looked(false, false);
        }
    }
}

fn into_raw<T: Payload + 'static>(payload: T) -> NonNull<T> {
    NonNull::new(Box::into_raw(Box::new(payload))).expect("a box is not null")
}

const NO_MEMORY: (*mut u8, usize) = (std::ptr::dangling_mut(), 0);

impl Request {
    fn new(
        action: Action,
        (offset, place_end): (u64, u64),
        (memory, bytes): (*mut u8, usize),
        payload: NonNull<dyn Payload>,
        queued: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            action,
            offset,
            place_end,
            memory,
            bytes,
            write_ok: AtomicBool::new(false),
            payload: Some(payload),
            queued: Some(queued),
        }
    }

    /// A request that fills `target`. The range is from the first byte to the end of the place, in the file.
    pub(super) fn read<P: Send + 'static, B: AsMut<[u8]> + Send + 'static>(
        range: (u64, u64),
        place: P,
        target: B,
        (health, queued): (&Arc<Health>, OwnedSemaphorePermit),
    ) -> (Self, Awaited<P, B>) {
        let (payload, answer) = transfer(Kind::Read, place, target, health);
        // SAFETY: just made, and reached by nobody else.
        let payload_mut = unsafe { &mut *payload.as_ptr() };
        let target = payload_mut.content.as_mut().expect("not answered yet").1.as_mut();
        let (memory, bytes) = (target.as_mut_ptr(), target.len());
        payload_mut.bytes = bytes as u64;
        (Self::new(Action::Read, range, (memory, bytes), payload, queued), answer)
    }

    /// A request that stores `source`.
    pub(super) fn write<P: Send + 'static, B: AsRef<[u8]> + Send + 'static>(
        range: (u64, u64),
        place: P,
        source: B,
        (health, queued): (&Arc<Health>, OwnedSemaphorePermit),
    ) -> (Self, Awaited<P, B>) {
        let (payload, answer) = transfer(Kind::Write, place, source, health);
        // SAFETY: as in `read`.
        let payload_mut = unsafe { &mut *payload.as_ptr() };
        let source = payload_mut.content.as_ref().expect("not answered yet").1.as_ref();
        let (memory, bytes) = (source.as_ptr().cast_mut(), source.len());
        payload_mut.bytes = bytes as u64;
        (Self::new(Action::Write, range, (memory, bytes), payload, queued), answer)
    }

    /// A request that syncs the file.
    pub(super) fn sync(
        health: &Arc<Health>,
        queued: OwnedSemaphorePermit,
    ) -> (Self, oneshot::Receiver<Result<(), DeviceError>>) {
        let (reply, answer) = oneshot::channel();
        let payload = into_raw(Sync(Some(reply), health.clone()));
        (Self::new(Action::Sync, (0, 0), NO_MEMORY, payload, queued), answer)
    }

    /// A look at a bad file; the answer goes to its health.
    pub(super) fn look(health: Arc<Health>, queued: OwnedSemaphorePermit) -> Self {
        Self::new(Action::Look, (0, 0), NO_MEMORY, into_raw(Look(health, false)), queued)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Start of the memory. It stays where it is, and is touched by nobody else, as long as the request lives.
    pub(super) fn memory(&self) -> *mut u8 {
        self.memory
    }

    /// Copies into the memory, of a read.
    pub(super) fn fill(&self, at: usize, bytes: &[u8]) {
        assert!(self.action == Action::Read && at + bytes.len() <= self.bytes, "within the buffer of a read");
        // SAFETY: in bounds; the memory is this request's own and writable, as it came from `AsMut`; the
        // bytes are a staging buffer's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.add(at), bytes.len()) };
    }

    /// Copies out of the memory.
    pub(super) fn drain(&self, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= self.bytes, "within the buffer");
        // SAFETY: in bounds, and initialized, as it came from a slice; the bytes are a staging buffer's.
        unsafe { std::ptr::copy_nonoverlapping(self.memory.add(at), bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Notes that a look could write.
    pub(super) fn could_write(&self) {
        self.write_ok.store(true, Relaxed);
    }

    /// Answers it. The kernel must be done with it.
    pub(super) fn settle(mut self, result: io::Result<()>) {
        let write_ok = self.write_ok.load(Relaxed);
        self.queued = None;
        if let Some(payload) = self.payload.take() {
            // SAFETY: from `Box::into_raw`, and taken once.
            unsafe { Box::from_raw(payload.as_ptr()) }.settle(result, write_ok);
        }
    }
}

fn transfer<P: Send + 'static, B: Send + 'static>(
    kind: Kind,
    place: P,
    buffer: B,
    health: &Arc<Health>,
) -> (NonNull<Transfer<P, B>>, Awaited<P, B>) {
    let (reply, answer) = oneshot::channel();
    let content = Some((place, buffer));
    let transfer = Transfer { content, reply: Some(reply), kind, bytes: 0, health: health.clone() };
    (into_raw(transfer), answer)
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(payload) = self.payload.take() {
            // SAFETY: from `Box::into_raw`, and taken once. The request is shared with every operation of
            // the kernel on its memory, so that none is left when it is dropped.
            drop(unsafe { Box::from_raw(payload.as_ptr()) });
        }
    }
}
