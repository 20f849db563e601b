//! Calls over the socket of shared memory: the verbs that ask once and are answered once, without HTTP.
//!
//! A call over gRPC passes through six tasks and two flow controls; on one host that is most of its time. Here a
//! call is one write and one read of each side, and its messages are the same.
//!
//! # Protocol
//! Follows the hand-over of the memory file on the same socket, if the handshake said so. All numbers are
//! little-endian. Every frame begins with a [`Head`] of 16 bytes:
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | bytes that follow the head |
//! | 4..8 | number of the call, the client's choice; sent back |
//! | 8..12 | in a call: milliseconds after which nobody waits for the answer; else 0 |
//! | 12 | kind: 1 call, 2 cancel, 3 answer, 4 refused, 5 call of a trace |
//! | 13 | in a call: bytes of the verb's name; else 0 |
//! | 14..16 | 0 |
//!
//! A call is followed by the verb's name as in the service (`Match`) and its request; an answer by the verb's
//! response; what is refused by the name of the reason, a line end, and a text. Answers come in any order. A
//! cancel says that nobody waits any more, and is not answered. A call of a trace, which only a store that said so takes,
//! has the 25 bytes of a [`TraceContext`] before the name. A frame that makes no sense ends the connection,
//! and with it the session.

mod client;
#[cfg(feature = "server")]
mod server;

use bytes::{Buf, Bytes, BytesMut};
use kelvin_proto::{
    Reason, Refusal,
    kv::v1::{self, kv_service_client::KvServiceClient},
    trace::TraceContext,
};
use prost::Message;
use tonic::{Request, Response, Status, transport::Channel};

pub(crate) use client::Calls;
#[cfg(feature = "server")]
pub(crate) use server::{Answers, answer_all};

pub(crate) const HEAD_BYTES: usize = 16;
/// Bytes behind a head: a message of the service's limit, and the verb's name.
const FRAME_BYTES_MAX: usize = (4 << 20) + 256;
/// Asked of the socket at a time, at least.
const READ_BYTES: usize = 16 << 10;
/// More is not kept for the next frames.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// A verb that asks once and is answered once.
pub(crate) trait Verb: Message + Default + 'static {
    type Answer: Message + Default;
    /// As in the service.
    const NAME: &'static str;

    fn over_grpc(
        request: Request<Self>,
        service: &mut KvServiceClient<Channel>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

/// Hands the table of these verbs to a macro.
macro_rules! for_each_verb {
    ($then:ident) => {
        $then! {
            open_namespace: OpenNamespaceRequest => OpenNamespaceResponse, "OpenNamespace";
            r#match: MatchRequest => MatchResponse, "Match";
            acquire: AcquireRequest => AcquireResponse, "Acquire";
            reserve: ReserveRequest => ReserveResponse, "Reserve";
            commit: CommitRequest => CommitResponse, "Commit";
            abort: AbortRequest => AbortResponse, "Abort";
            renew: RenewRequest => RenewResponse, "Renew";
            release: ReleaseRequest => ReleaseResponse, "Release";
            stats: StatsRequest => StatsResponse, "Stats";
            prefetch: PrefetchRequest => PrefetchResponse, "Prefetch";
            pin: PinRequest => PinResponse, "Pin";
            unpin: UnpinRequest => UnpinResponse, "Unpin";
            evict: EvictRequest => EvictResponse, "Evict";
            end_session: EndSessionRequest => EndSessionResponse, "EndSession";
            explain: ExplainRequest => ExplainResponse, "Explain";
            inspect: InspectRequest => InspectResponse, "Inspect";
            collect: CollectRequest => CollectResponse, "Collect";
        }
    };
}
#[cfg(feature = "server")]
pub(crate) use for_each_verb;

macro_rules! verbs {
    ($($method:ident: $request:ident => $response:ident, $name:literal;)*) => {$(
        impl Verb for v1::$request {
            type Answer = v1::$response;
            const NAME: &'static str = $name;

            async fn over_grpc(
                request: Request<Self>,
                service: &mut KvServiceClient<Channel>,
            ) -> Result<Response<Self::Answer>, Status> {
                service.$method(request).await
            }
        }
    )*};
}
for_each_verb!(verbs);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Call = 1,
    Cancel = 2,
    Answer = 3,
    Refused = 4,
    Traced = 5,
}

/// What stands before every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) bytes: u32,
    pub(crate) call: u32,
    pub(crate) wait_ms: u32,
    pub(crate) kind: Kind,
    pub(crate) name_bytes: u8,
}

/// Bytes that make no sense as this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// A kind of frame there is not.
    #[error("an unknown kind of frame, {0}")]
    Kind(u8),
    /// More than a message may have.
    #[error("a frame of {0} bytes; a message has at most {FRAME_BYTES_MAX}")]
    Bytes(u32),
    /// A name that does not fit its frame, or a frame that should have nothing behind its head.
    #[error("a frame whose lengths do not fit together")]
    Lengths,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.call.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.wait_ms.to_le_bytes());
        (bytes[12], bytes[13]) = (self.kind as u8, self.name_bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Self, Malformed> {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = match bytes[12] {
            1 => Kind::Call,
            2 => Kind::Cancel,
            3 => Kind::Answer,
            4 => Kind::Refused,
            5 => Kind::Traced,
            other => return Err(Malformed::Kind(other)),
        };
        let head =
            Self { bytes: number(0), call: number(4), wait_ms: number(8), kind, name_bytes: bytes[13] };
        if head.bytes as usize > FRAME_BYTES_MAX {
            return Err(Malformed::Bytes(head.bytes));
        }
        let named = u32::from(head.name_bytes);
        let fits = match kind {
            Kind::Call => (1..=head.bytes).contains(&named),
            Kind::Traced => named > 0 && named + TraceContext::BYTES as u32 <= head.bytes,
            Kind::Cancel => head.bytes == 0 && named == 0,
            Kind::Answer | Kind::Refused => named == 0,
        };
        if fits { Ok(head) } else { Err(Malformed::Lengths) }
    }
}

/// A call as it goes over the wire; the message has at most [`FRAME_BYTES_MAX`].
fn call_frame<V: Verb>(
    call: u32,
    wait_ms: u32,
    message: &V,
    trace: Option<TraceContext>,
) -> Result<Vec<u8>, Refusal> {
    let traced = if trace.is_some() { TraceContext::BYTES } else { 0 };
    let bytes = within_limit(traced + V::NAME.len() + message.encoded_len())?;
    let kind = if trace.is_some() { Kind::Traced } else { Kind::Call };
    let head = Head { bytes, call, wait_ms, kind, name_bytes: V::NAME.len() as u8 };
    let mut frame = Vec::with_capacity(HEAD_BYTES + bytes as usize);
    frame.extend_from_slice(&head.encode());
    if let Some(trace) = trace {
        frame.extend_from_slice(&trace.to_bytes());
    }
    frame.extend_from_slice(V::NAME.as_bytes());
    message.encode(&mut frame).expect("a vector grows");
    Ok(frame)
}

fn within_limit(bytes: usize) -> Result<u32, Refusal> {
    if bytes > FRAME_BYTES_MAX {
        let text = format!("a message of {bytes} bytes: the limit is {}", FRAME_BYTES_MAX - 256);
        return Err(Refusal::new(Reason::LimitExceeded, text));
    }
    Ok(bytes as u32)
}

/// Takes the trace off a call's payload, of which a checked head says that it is there.
#[cfg(feature = "server")]
fn take_trace(payload: &mut Bytes) -> Option<TraceContext> {
    let bytes = payload.split_to(TraceContext::BYTES);
    TraceContext::from_bytes(bytes.first_chunk()?)
}

fn cancel_frame(call: u32) -> [u8; HEAD_BYTES] {
    Head { bytes: 0, call, wait_ms: 0, kind: Kind::Cancel, name_bytes: 0 }.encode()
}

/// An answer, ready for the wire.
#[cfg(feature = "server")]
pub(crate) fn answer_frame(answer: &impl Message) -> Result<Vec<u8>, Refusal> {
    let bytes = within_limit(answer.encoded_len())?;
    let mut frame = Vec::with_capacity(HEAD_BYTES + bytes as usize);
    // Which call it is for is filled in by who knows.
    frame.extend_from_slice(&Head { bytes, call: 0, wait_ms: 0, kind: Kind::Answer, name_bytes: 0 }.encode());
    answer.encode(&mut frame).expect("a vector grows");
    Ok(frame)
}

#[cfg(feature = "server")]
fn refusal_frame(refusal: &Refusal) -> Vec<u8> {
    // It may repeat what the client sent.
    const TEXT_CHARS_MAX: usize = 16 << 10;
    let text = format!("{}\n{}", refusal.reason.name(), refusal.message);
    let text: String = text.chars().take(TEXT_CHARS_MAX).collect();
    let head = Head { bytes: text.len() as u32, call: 0, wait_ms: 0, kind: Kind::Refused, name_bytes: 0 };
    [&head.encode()[..], text.as_bytes()].concat()
}

#[cfg(feature = "server")]
fn address(frame: &mut [u8], call: u32) {
    frame[4..8].copy_from_slice(&call.to_le_bytes());
}

fn refusal_of(text: &[u8]) -> Refusal {
    let text = String::from_utf8_lossy(text);
    let (name, message) = text.split_once('\n').unwrap_or(("", &text));
    let reason = Reason::of_name(name).unwrap_or(Reason::Internal);
    Refusal::new(reason, message)
}

/// The next frame, if all of it is here; else room for more of it is made.
fn take_frame(buffer: &mut BytesMut) -> Result<Option<(Head, Bytes)>, Malformed> {
    if buffer.is_empty() && buffer.capacity() > KEPT_BYTES_MAX {
        *buffer = BytesMut::new();
    }
    let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else {
        buffer.reserve(READ_BYTES);
        return Ok(None);
    };
    let head = Head::decode(head)?;
    let whole = HEAD_BYTES + head.bytes as usize;
    if buffer.len() < whole {
        buffer.reserve(READ_BYTES.max(whole - buffer.len()));
        return Ok(None);
    }
    let mut frame = buffer.split_to(whole).freeze();
    frame.advance(HEAD_BYTES);
    Ok(Some((head, frame)))
}

/// Takes apart what came over a socket; for the fuzz target.
#[cfg(feature = "server")]
pub(crate) fn decode_any(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some((head, _))) = take_frame(&mut buffer) {
        assert_eq!(Head::decode(&head.encode()), Ok(head));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let message = v1::AbortRequest { session_id: 7, lease_ids: vec![1, 2, 3] };
        let frame = call_frame(9, 250, &message, None).unwrap();
        let twice = [&frame[..], &cancel_frame(9), &frame].concat();
        for cut in 0..=twice.len() {
            let mut buffer = BytesMut::new();
            let mut frames = Vec::new();
            for part in [&twice[..cut], &twice[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(frame) = take_frame(&mut buffer).unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 3, "cut at {cut}");
            let (head, payload) = &frames[2];
            assert_eq!((head.call, head.wait_ms, head.kind), (9, 250, Kind::Call));
            let (name, rest) = payload.split_at(head.name_bytes.into());
            assert_eq!((name, v1::AbortRequest::decode(rest).unwrap()), (&b"Abort"[..], message.clone()));
            assert_eq!(frames[1].0.kind, Kind::Cancel);
        }
    }

    #[test]
    fn a_call_says_which_trace_it_belongs_to() {
        let trace = TraceContext { trace_id: [7; 16], span_id: [8; 8], flags: 1 };
        let message = v1::AbortRequest { session_id: 7, lease_ids: vec![1] };
        let mut buffer = BytesMut::from(&call_frame(9, 250, &message, Some(trace)).unwrap()[..]);
        let (head, mut payload) = take_frame(&mut buffer).unwrap().unwrap();
        assert_eq!(head.kind, Kind::Traced);
        assert_eq!(take_trace(&mut payload), Some(trace));
        let name = payload.split_to(head.name_bytes.into());
        assert_eq!((&name[..], v1::AbortRequest::decode(payload).unwrap()), (&b"Abort"[..], message));
    }

    #[test]
    fn heads_that_make_no_sense_are_refused() {
        let good = Head { bytes: 10, call: 1, wait_ms: 0, kind: Kind::Call, name_bytes: 5 };
        let with = |change: fn(&mut Head)| {
            let mut head = good;
            change(&mut head);
            Head::decode(&head.encode())
        };
        assert_eq!(with(|_| ()), Ok(good));
        assert_eq!(with(|head| head.bytes = u32::MAX), Err(Malformed::Bytes(u32::MAX)));
        assert_eq!(with(|head| head.name_bytes = 11), Err(Malformed::Lengths));
        assert_eq!(with(|head| head.name_bytes = 0), Err(Malformed::Lengths));
        assert_eq!(with(|head| head.kind = Kind::Cancel), Err(Malformed::Lengths));
        assert_eq!(with(|head| head.kind = Kind::Answer), Err(Malformed::Lengths));
        // There is no room for the trace.
        assert_eq!(with(|head| head.kind = Kind::Traced), Err(Malformed::Lengths));
        let mut unknown = good.encode();
        unknown[12] = 9;
        assert_eq!(Head::decode(&unknown), Err(Malformed::Kind(9)));
    }

    #[test]
    fn a_refusal_survives_the_wire() {
        for &reason in Reason::ALL {
            let frame = refusal_frame(&Refusal::new(reason, "say\nwhat to change"));
            let refusal = refusal_of(&frame[HEAD_BYTES..]);
            assert_eq!((refusal.reason, &refusal.message[..]), (reason, "say\nwhat to change"));
        }
    }
}
