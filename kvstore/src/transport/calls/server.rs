//! The store's side.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use futures::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tracing::Instrument;

use super::*;
use crate::{span, store::Tenant};

/// Calls of one client under way.
const CALLS_MAX: usize = 1024;
/// Without any progress for so long, in the middle of an answer, a client is given up.
const STALL: Duration = Duration::from_secs(10);

/// Who answers calls.
pub(crate) trait Answers: Send + Sync + 'static {
    /// The frame of an answer, for whatever call.
    fn answer(
        self: Arc<Self>,
        tenant: Arc<Tenant>,
        verb: &[u8],
        message: Bytes,
    ) -> BoxFuture<'static, Result<Vec<u8>, Refusal>>;
}

/// Answers one client until its end closes.
pub(crate) async fn answer_all(
    mut stream: UnixStream,
    tenant: Arc<Tenant>,
    answers: Arc<impl Answers>,
) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    let mut buffer = BytesMut::with_capacity(HEAD_BYTES);
    // Most calls are answered at once; these are not.
    let mut under_way = FuturesUnordered::new();
    let mut cancels = HashMap::new();
    loop {
        tokio::select! {
            Some((call, answer)) = under_way.next(), if !under_way.is_empty() => {
                cancels.remove(&call);
                // None was cancelled, or took longer than its client waits.
                if let Some(answer) = answer {
                    write(&mut to, call, answer).await?;
                }
            }
            read = from.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Ok(());
                }
                while let Some((head, mut payload)) = take_frame(&mut buffer).map_err(io::Error::other)? {
                    match head.kind {
                        Kind::Call | Kind::Traced if under_way.len() < CALLS_MAX => {
                            let trace = if head.kind == Kind::Traced { take_trace(&mut payload) } else { None };
                            let verb = payload.split_to(head.name_bytes.into());
                            let span = span::of_call(&String::from_utf8_lossy(&verb), "socket", trace);
                            let mut answer = answers.clone().answer(tenant.clone(), &verb, payload);
                            if !span.is_none() {
                                answer = Box::pin(answer.instrument(span));
                            }
                            match (&mut answer).now_or_never() {
                                Some(answer) => write(&mut to, head.call, answer).await?,
                                None => {
                                    let (cancel, cancelled) = AbortHandle::new_pair();
                                    cancels.insert(head.call, cancel);
                                    let time = Duration::from_millis(head.wait_ms.into());
                                    let answer = Abortable::new(tokio::time::timeout(time, answer), cancelled);
                                    under_way.push(answer.map(move |answer| (head.call, answer.ok().and_then(Result::ok))));
                                }
                            }
                        }
                        Kind::Call | Kind::Traced => {
                            let text = format!("{CALLS_MAX} calls of this client are under way");
                            write(&mut to, head.call, Err(Refusal::new(Reason::Exhausted, text))).await?;
                        }
                        Kind::Cancel => if let Some(cancel) = cancels.remove(&head.call) {
                            cancel.abort();
                        },
                        Kind::Answer | Kind::Refused => {
                            return Err(io::Error::new(io::ErrorKind::InvalidData, "a client that answers"));
                        }
                    }
                }
            }
        }
    }
}

async fn write(
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    call: u32,
    answer: Result<Vec<u8>, Refusal>,
) -> io::Result<()> {
    let mut frame = answer.unwrap_or_else(|refusal| refusal_frame(&refusal));
    address(&mut frame, call);
    let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no answer"));
    tokio::time::timeout(STALL, to.write_all(&frame)).await.unwrap_or_else(late)
}
