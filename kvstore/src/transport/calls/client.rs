//! The caller's side.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use kelvin_proto::trace;
use parking_lot::Mutex;
use tokio::{
    net::UnixStream,
    sync::{Notify, oneshot},
    task::AbortHandle,
};

use super::*;

/// What may wait for the store to take it.
const UNSENT_BYTES_MAX: usize = 16 << 20;

/// Calls to the store at the other end of a socket. Dropping it closes the socket.
#[derive(Debug)]
pub(crate) struct Calls {
    line: Arc<Line>,
    hearing: AbortHandle,
    /// Whether the store takes calls of a trace.
    takes_traces: bool,
}

#[derive(Debug)]
struct Line {
    socket: UnixStream,
    state: Mutex<State>,
    /// There is something unsent.
    stuck: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: u32,
    /// Who waits for which call.
    waiting: HashMap<u32, oneshot::Sender<Result<Bytes, Refusal>>>,
    /// What the socket did not take at once.
    unsent: BytesMut,
    closed: bool,
}

impl Calls {
    /// Within a runtime: answers are heard by a task of its own.
    pub(crate) fn start(socket: std::os::unix::net::UnixStream, takes_traces: bool) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        let line = Arc::new(Line { socket, state: Mutex::default(), stuck: Notify::new() });
        let task = line.clone();
        let hearing = tokio::spawn(async move {
            let error = task.hear().await;
            tracing::debug!(%error, "calls over the socket ended");
            task.close();
        });
        Ok(Self { line, hearing: hearing.abort_handle(), takes_traces })
    }

    /// Whether the other end is gone: then nothing can be called here any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.line.state.lock().closed
    }

    /// Asks, and waits so long for the answer. Dropping it tells the store that nobody waits.
    pub(crate) async fn call<V: Verb>(&self, message: &V, time: Duration) -> Result<V::Answer, Refusal> {
        let trace = if self.takes_traces { trace::current() } else { None };
        let (asked, mut waiting) = self.line.ask(message, time, trace)?;
        let answer = match tokio::time::timeout(time, asked).await {
            Ok(Ok(answer)) => {
                waiting.answered = true;
                answer?
            }
            Ok(Err(_)) => return Err(gone()),
            Err(_) => {
                let text = format!("no answer to {} within {} ms", V::NAME, time.as_millis());
                return Err(Refusal::new(Reason::Unavailable, text));
            }
        };
        V::Answer::decode(answer)
            .map_err(|error| Refusal::new(Reason::Internal, format!("an answer to {}: {error}", V::NAME)))
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.hearing.abort();
        // The task may end later, or never if its runtime is gone; the store is to know now.
        let _ = rustix::net::shutdown(&self.line.socket, rustix::net::Shutdown::Both);
    }
}

/// A call under way; tells the store when nobody waits for it any more.
struct Waiting<'a> {
    line: &'a Line,
    call: u32,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let mut state = self.line.state.lock();
        if state.waiting.remove(&self.call).is_some() && !state.closed {
            self.line.send(&mut state, &cancel_frame(self.call));
        }
    }
}

type Answer = oneshot::Receiver<Result<Bytes, Refusal>>;

impl Line {
    fn ask<V: Verb>(
        &self,
        message: &V,
        time: Duration,
        trace: Option<TraceContext>,
    ) -> Result<(Answer, Waiting<'_>), Refusal> {
        let wait_ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1);
        // Made outside of the lock; its number is filled in when it has one.
        let mut frame = call_frame(0, wait_ms, message, trace)?;
        let (answer, asked) = oneshot::channel();
        let mut state = self.state.lock();
        if state.closed {
            return Err(gone());
        }
        if state.unsent.len() + frame.len() > UNSENT_BYTES_MAX {
            return Err(Refusal::new(Reason::Unavailable, "the store takes no more calls: it hangs"));
        }
        // A call of this number that is still under way would have outlived four thousand million others.
        state.last = state.last.wrapping_add(1);
        let call = state.last;
        frame[4..8].copy_from_slice(&call.to_le_bytes());
        state.waiting.insert(call, answer);
        self.send(&mut state, &frame);
        Ok((asked, Waiting { line: self, call, answered: false }))
    }

    /// Frames go whole and in order, so the caller never waits in the middle of one.
    fn send(&self, state: &mut State, frame: &[u8]) {
        let sent = match state.unsent.is_empty() {
            // An error shows when the answer is heard.
            true => self.socket.try_write(frame).unwrap_or(0),
            false => 0,
        };
        if sent < frame.len() {
            state.unsent.extend_from_slice(&frame[sent..]);
            self.stuck.notify_one();
        }
    }

    /// Gives answers to those who wait; why it ended.
    async fn hear(&self) -> io::Error {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            let unsent = !self.state.lock().unsent.is_empty();
            let turn = tokio::select! {
                ready = self.socket.readable() => ready.and_then(|()| self.take_answers(&mut buffer)),
                ready = self.socket.writable(), if unsent => ready.and_then(|()| self.send_rest()),
                () = self.stuck.notified(), if !unsent => Ok(()),
            };
            match turn {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return error,
            }
        }
    }

    fn take_answers(&self, buffer: &mut BytesMut) -> io::Result<()> {
        if self.socket.try_read_buf(buffer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some((head, payload)) = take_frame(buffer).map_err(io::Error::other)? {
            let answer = match head.kind {
                Kind::Answer => Ok(payload),
                Kind::Refused => Err(refusal_of(&payload)),
                Kind::Call | Kind::Traced | Kind::Cancel => {
                    return Err(io::Error::other("the store calls back"));
                }
            };
            // Nobody may wait any more.
            if let Some(waiting) = self.state.lock().waiting.remove(&head.call) {
                let _ = waiting.send(answer);
            }
        }
        Ok(())
    }

    fn send_rest(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let sent = self.socket.try_write(&state.unsent)?;
        state.unsent.advance(sent);
        if state.unsent.is_empty() {
            // What a burst took is not kept.
            state.unsent = BytesMut::new();
        }
        Ok(())
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting.clear();
        state.unsent = BytesMut::new();
    }
}

fn gone() -> Refusal {
    Refusal::new(Reason::Unavailable, "the store closed the socket")
}
