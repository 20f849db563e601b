//! Spans over OTLP: off unless an endpoint is named.
//!
//! # Overview
//! The libraries make `tracing` spans and hand on [`TraceContext`]s; this module, the only one that knows
//! OpenTelemetry, exports the spans of Kelvin's own crates and ties both together. Without an endpoint nothing of it
//! exists: the spans are disabled where they are made.
//!
//! # Limits
//! At most 2,048 spans wait (`OTEL_BSP_MAX_QUEUE_SIZE`), sent in batches every 5 s (`OTEL_BSP_SCHEDULE_DELAY`); what
//! does not fit, and what a collector that is away did not take, is dropped, and never waited for. A failure is
//! logged when it begins and when it ends, with the number of spans that were lost. `OTEL_TRACES_SAMPLER` thins out;
//! a client whose `traceparent` says that it does not record is believed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use kelvin_proto::trace::{self, TraceContext};
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing::{Level, Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

/// Who exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// `kelvin-router` and the like.
    pub(crate) name: &'static str,
    /// Which of them, if there may be several.
    pub(crate) instance: Option<String>,
}

/// Longest time a batch may take.
const EXPORT_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest time a stop waits for the last batch.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(3);

/// Sends what is left when it is dropped.
pub(crate) struct Telemetry(SdkTracerProvider);

impl Drop for Telemetry {
    fn drop(&mut self) {
        // What could not be sent was said by the exporter.
        let _ = self.0.shutdown_with_timeout(FLUSH_TIME_MAX);
    }
}

/// The layer that exports, and what flushes it. Must be called inside a runtime that outlives it.
pub(crate) fn start(
    endpoint: &str,
    service: Service,
) -> anyhow::Result<(Box<dyn Layer<Registry> + Send + Sync>, Telemetry)> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIME_MAX)
        .build()
        .with_context(|| format!("export traces to {endpoint}"))?;
    let exporter = Watched { exporter, endpoint: endpoint.to_owned(), lost: AtomicU64::new(0) };
    let instance = service.instance.unwrap_or_else(|| std::process::id().to_string());
    let resource = Resource::builder()
        .with_service_name(service.name)
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
    let layer = layer(&provider);
    trace::install(Box::new(OverOtlp));
    Ok((layer, Telemetry(provider)))
}

fn layer<S>(provider: &SdkTracerProvider) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("kelvin"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_filter(filter_fn(is_exported))
        .boxed()
}

/// Spans of Kelvin's crates, and what went wrong within them. Who looks at a page of metrics is no request.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().starts_with("kelvin");
    let level = if metadata.is_span() { Level::DEBUG } else { Level::WARN };
    ours && *metadata.level() <= level && metadata.name() != "page"
}

/// Between the libraries' words and OpenTelemetry's.
struct OverOtlp;

impl trace::Tracer for OverOtlp {
    fn context(&self, span: &Span) -> Option<TraceContext> {
        let context = span.context();
        let span = context.span();
        let context = span.span_context();
        context.is_valid().then(|| TraceContext {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            flags: context.trace_flags().to_u8(),
        })
    }

    fn adopt(&self, span: &Span, parent: TraceContext) {
        let parent = SpanContext::new(
            TraceId::from_bytes(parent.trace_id),
            SpanId::from_bytes(parent.span_id),
            TraceFlags::new(parent.flags),
            true,
            TraceState::default(),
        );
        // It fails for a span that is not exported, which then has no parent either.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// An exporter that says when spans get lost, and when they do no longer.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    endpoint: String,
    /// Spans lost in the failure that is going on.
    lost: AtomicU64,
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.exporter.export(batch).await;
        match &result {
            Ok(()) => {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::warn!(endpoint = self.endpoint, lost, "the collector takes traces again");
                }
            }
            Err(error) => {
                if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
                    tracing::warn!(endpoint = self.endpoint, %error, "traces cannot be sent: spans are dropped");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::error::OTelSdkError;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Keeps spans; fails as long as it is told to.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<(bool, Vec<SpanData>)>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let mut kept = self.0.lock().unwrap();
            kept.1.extend(batch);
            if kept.0 { Err(OTelSdkError::InternalFailure("away".into())) } else { Ok(()) }
        }
    }

    #[test]
    fn a_span_goes_on_with_the_trace_that_came() {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
        let subscriber = tracing_subscriber::registry().with(layer(&provider));
        let parent = TraceContext { trace_id: [7; 16], span_id: [8; 8], flags: 1 };
        let handed_on = tracing::subscriber::with_default(subscriber, || {
            let span = tracing::debug_span!(target: "kelvin_test", "outer", blocks = 3);
            trace::Tracer::adopt(&OverOtlp, &span, parent);
            let _page = tracing::info_span!(target: "kelvin_test", "page").entered();
            let _foreign = tracing::info_span!(target: "h2", "foreign").entered();
            span.in_scope(|| {
                let inner = tracing::debug_span!(target: "kelvin_test", "inner");
                trace::Tracer::context(&OverOtlp, &inner).unwrap()
            })
        });
        let spans = kept.0.lock().unwrap().1.clone();
        let names: Vec<_> = spans.iter().map(|span| span.name.to_string()).collect();
        assert_eq!(names, ["inner", "outer"]);
        assert!(spans.iter().all(|span| span.span_context.trace_id().to_bytes() == parent.trace_id));
        assert_eq!(spans[1].parent_span_id.to_bytes(), parent.span_id);
        assert_eq!(spans[0].parent_span_id, spans[1].span_context.span_id());
        assert_eq!(handed_on.span_id, spans[0].span_context.span_id().to_bytes());
        assert_eq!(handed_on.flags, 1);
    }

    #[tokio::test]
    async fn spans_that_are_lost_are_counted_until_they_no_longer_are() {
        let kept = Kept::default();
        let watched = Watched { exporter: kept.clone(), endpoint: "x".into(), lost: AtomicU64::new(0) };
        let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
        let subscriber = tracing_subscriber::registry().with(layer(&provider));
        tracing::subscriber::with_default(subscriber, || {
            drop(tracing::info_span!(target: "kelvin_test", "a"));
            drop(tracing::info_span!(target: "kelvin_test", "b"));
        });
        let batch = std::mem::take(&mut kept.0.lock().unwrap().1);
        assert_eq!(batch.len(), 2);
        kept.0.lock().unwrap().0 = true;
        assert!(watched.export(batch.clone()).await.is_err());
        assert_eq!(watched.lost.load(Ordering::Relaxed), 2);
        kept.0.lock().unwrap().0 = false;
        assert!(watched.export(batch).await.is_ok());
        assert_eq!(watched.lost.load(Ordering::Relaxed), 0);
    }
}
