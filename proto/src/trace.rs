//! One trace a request, over all processes: what says which trace a call belongs to, however the call goes.
//!
//! # Overview
//! A process that exports its spans [`install`]s a [`Tracer`], once; in all others every function here is one load
//! and does nothing. Whoever calls another process hands on the [`TraceContext`] of the span it is in
//! ([`current`], [`inject`]); whoever is called makes a span and lets it [`adopt`] what came ([`of_headers`]). Over
//! HTTP and gRPC it is W3C's header `traceparent`; over the store's socket its 25 bytes stand in the frame.
//!
//! # Invariants
//! What comes is a hint of a client and never trusted: what does not parse counts as nothing. `tracestate` is not
//! carried between Kelvin's own processes, none of which has a use for it.

use std::{fmt, sync::OnceLock};

use tonic::{Request, Status, codegen::http::HeaderMap, metadata::MetadataMap};
use tracing::Span;

/// The header, in HTTP and in gRPC's metadata.
pub const TRACEPARENT: &str = "traceparent";

/// Which trace, and which span of it: W3C Trace Context, level 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Not all zero.
    pub trace_id: [u8; 16],
    /// Not all zero.
    pub span_id: [u8; 8],
    /// Bit 0: it is recorded.
    pub flags: u8,
}

impl TraceContext {
    /// Length of [`to_bytes`](Self::to_bytes).
    pub const BYTES: usize = 25;

    /// `00-<32 hex digits>-<16>-<2>`; of a later version the same four parts, which it has to begin with.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = hex::<1>(parts.next()?)?[0];
        let context = Self::checked(hex(parts.next()?)?, hex(parts.next()?)?, hex::<1>(parts.next()?)?[0])?;
        let whole = parts.next().is_none();
        (version != 0xff && (version != 0 || whole)).then_some(context)
    }

    /// Trace, span and flags, one behind the other.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = self.flags;
        bytes
    }

    /// The inverse; `None` for what names no trace or no span.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        trace_id.copy_from_slice(&bytes[..16]);
        span_id.copy_from_slice(&bytes[16..24]);
        Self::checked(trace_id, span_id, bytes[24])
    }

    fn checked(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Self> {
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, flags })
    }
}

/// As the header has it.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

/// Lowercase digits only, as the standard wants them.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// What ties spans of this process to traces.
pub trait Tracer: Send + Sync {
    /// Where `span` stands; `None` if it is not exported.
    fn context(&self, span: &Span) -> Option<TraceContext>;

    /// Makes `span`, which nobody entered yet, a child of another process's span.
    fn adopt(&self, span: &Span, parent: TraceContext);
}

static TRACER: OnceLock<Box<dyn Tracer>> = OnceLock::new();

/// Turns this process's part of traces on. Returns whether it was off until now.
pub fn install(tracer: Box<dyn Tracer>) -> bool {
    TRACER.set(tracer).is_ok()
}

/// Whether this process exports spans.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Of the span this runs in, to be handed on.
pub fn current() -> Option<TraceContext> {
    TRACER.get()?.context(&Span::current())
}

/// Makes `span` a child of what came with a call, if anything did.
pub fn adopt(span: &Span, parent: Option<TraceContext>) {
    if let (Some(tracer), Some(parent)) = (TRACER.get(), parent) {
        tracer.adopt(span, parent);
    }
}

/// What a request over HTTP brought; `None` also where nothing is exported.
pub fn of_headers(headers: &HeaderMap) -> Option<TraceContext> {
    if !is_on() {
        return None;
    }
    TraceContext::parse(headers.get(TRACEPARENT)?.to_str().ok()?)
}

/// What a call over gRPC brought.
pub fn of_metadata(metadata: &MetadataMap) -> Option<TraceContext> {
    of_headers(metadata.as_ref())
}

/// Hands the current span on in a call over gRPC; an interceptor of clients.
///
/// # Errors
/// None: interceptors may have some.
pub fn inject(mut request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(context) = current()
        && let Ok(value) = context.to_string().parse()
    {
        request.metadata_mut().insert(TRACEPARENT, value);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_survives_both_forms() {
        let context = TraceContext::parse(GOOD).unwrap();
        assert_eq!((context.trace_id[0], context.span_id[7], context.flags), (0x4b, 0xb7, 1));
        assert_eq!(context.to_string(), GOOD);
        assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
        // A later version may say more.
        let later = GOOD.replacen("00", "01", 1) + "-more";
        assert_eq!(TraceContext::parse(&later), Some(context));
    }

    #[test]
    fn what_makes_no_sense_is_nothing() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-é",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        assert_eq!(TraceContext::from_bytes(&[0; TraceContext::BYTES]), None);
    }

    #[test]
    fn without_a_tracer_nothing_is_handed_on() {
        let request = inject(Request::new(())).unwrap();
        assert!(request.metadata().is_empty());
        let mut metadata = MetadataMap::new();
        metadata.insert(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(of_metadata(&metadata), None);
        assert!(!is_on());
    }
}
