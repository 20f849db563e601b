//! Traces over OTLP, received by a collector in this test: one trace a request, over all four processes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use super::harness::{Cluster, http, until};

/// A span, and the process it came from.
#[derive(Debug, Clone)]
struct Found {
    service: String,
    span: Span,
}

impl Found {
    fn attribute(&self, name: &str) -> Option<String> {
        attribute(&self.span.attributes, name)
    }
}

fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<Found>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut found = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            let service = attribute(attributes, "service.name").unwrap();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            found.extend(spans.map(|span| Found { service: service.clone(), span }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// One that listens, and where.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server =
            tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(server.serve_with_incoming(incoming));
        (collector, url)
    }

    fn of_trace(&self, trace_id: &[u8]) -> Vec<Found> {
        let found = self.0.lock().unwrap();
        found.iter().filter(|found| found.span.trace_id == trace_id).cloned().collect()
    }
}

const TRACE: [u8; 16] =
    [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];
const CLIENTS_SPAN: [u8; 8] = [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];

async fn ask(cluster: &Cluster, prompt: &str, recorded: bool) {
    let flags = if recorded { "01" } else { "00" };
    let traceparent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
    let body = serde_json::json!({"model": "toy", "prompt": prompt, "max_tokens": 8, "temperature": 0});
    let request = http().build().unwrap().post(cluster.url("/v1/completions"));
    let answer = request.header("traceparent", traceparent).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap();
}

/// Spans are sent as soon as this; without it every 5 s.
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_over_all_processes() {
    let (collector, url) = Collector::start().await;
    let dir = tempfile::tempdir().unwrap();
    // A prompt that takes long enough for a prefill elsewhere to pay.
    let env = [SOON, ("KELVIN_TOY_PROMPT_TOKEN_TIME", "1ms")];
    let cluster = Cluster::start(dir.path(), &["--otlp", &url], &env);
    cluster.with_store().await;
    ask(&cluster, &"One trace a request. ".repeat(40), true).await;

    let services = ["kelvin-decode", "kelvin-prefill", "kelvin-router", "kelvin-store"];
    let mut found = Vec::new();
    // The request's own span and decode's are the last to end.
    until("spans of all four processes", async || {
        found = collector.of_trace(&TRACE);
        let named = |name: &str| found.iter().any(|found| found.span.name == name);
        let from: BTreeSet<&str> = found.iter().map(|found| found.service.as_str()).collect();
        from == BTreeSet::from(services)
            && named("POST /v1/completions")
            && named("decode")
            && named("prefill")
    })
    .await;
    cluster.stop();
    found = collector.of_trace(&TRACE);

    let by_id = |id: &[u8]| found.iter().find(|found| found.span.span_id == id);
    let parent = |child: &Found| by_id(&child.span.parent_span_id).cloned();
    let one = |service: &str, name: &str| {
        let mut all = found.iter().filter(|found| found.service == service && found.span.name == name);
        let first = all.next().unwrap_or_else(|| panic!("{service} has no span {name}: {found:#?}"));
        first.clone()
    };
    // Every span has its parent in the trace, up to the client's.
    for span in &found {
        let known = span.span.parent_span_id == CLIENTS_SPAN || parent(span).is_some();
        assert!(known, "{} of {} has no parent", span.span.name, span.service);
    }
    let request = one("kelvin-router", "POST /v1/completions");
    assert_eq!(request.span.parent_span_id, CLIENTS_SPAN);
    let id = request.attribute("request_id").unwrap();
    assert_eq!(request.attribute("http.response.status_code").as_deref(), Some("200"));
    let schedule = one("kelvin-router", "schedule");
    assert_eq!(parent(&schedule).unwrap().span.span_id, request.span.span_id);
    assert_eq!(schedule.attribute("prefill").as_deref(), Some("remote"));
    for (service, name) in [("kelvin-prefill", "prefill"), ("kelvin-decode", "decode")] {
        let work = one(service, name);
        assert_eq!(parent(&work).unwrap().service, "kelvin-router", "{name}");
        assert_eq!(work.attribute("request_id").as_deref(), Some(&id[..]), "{name}");
    }
    assert_eq!(parent(&one("kelvin-prefill", "evaluate")).unwrap().span.name, "prefill");

    // Calls to the store: of the router over gRPC, of the workers over the socket, each below its caller's span.
    let of_store: Vec<&Found> = found.iter().filter(|found| found.service == "kelvin-store").collect();
    for (verb, caller, via) in [
        ("store Match", "kelvin-router", "grpc"),
        ("store Reserve", "kelvin-prefill", "socket"),
        ("store Commit", "kelvin-prefill", "socket"),
        ("store Acquire", "kelvin-decode", "socket"),
    ] {
        let called = of_store.iter().any(|call| {
            call.span.name == verb
                && call.attribute("via").as_deref() == Some(via)
                && parent(call).is_some_and(|parent| parent.service == caller)
        });
        assert!(called, "{caller} did not call {verb} over {via}: {of_store:#?}");
    }
    let came = of_store.iter().filter(|call| call.span.name == "store Acquire").any(|call| {
        let tiers = call.attribute("tiers").unwrap_or_default();
        let bytes: u64 = call.attribute("bytes").unwrap_or_default().parse().unwrap_or(0);
        tiers.starts_with("dram:") && bytes > 0
    });
    assert!(came, "{of_store:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_says_which_tier_blocks_came_from() {
    let (collector, url) = Collector::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (data, nvme) = (dir.path().join("data"), dir.path().join("nvme"));
    std::fs::create_dir_all(&nvme).unwrap();
    let nvme = format!("{}=64MiB", nvme.display());
    let run = dir.path().join("run");
    // Room for 256 blocks in memory; the prompts have 40 each.
    let flags = ["--otlp", &url, "--dram", "1MiB", "--data", data.to_str().unwrap(), "--nvme", &nvme];
    let cluster = Cluster::start(&run, &flags, &[SOON]);
    cluster.with_store().await;
    // Who says that it does not record gets no spans, and its turn offloads what comes again.
    let prompt = |turn: usize| format!("{:04}", turn % 12).repeat(160);
    for turn in 0..12 {
        ask(&cluster, &prompt(turn), false).await;
    }
    let mut turn = 0;
    until("a span of blocks from NVMe", async || {
        ask(&cluster, &prompt(turn), true).await;
        turn += 1;
        collector.of_trace(&TRACE).iter().any(|found| {
            let from = found.attribute("tiers").unwrap_or_default();
            found.service == "kelvin-store" && found.span.name == "onboard" && from.starts_with("nvme:")
        })
    })
    .await;
    cluster.stop();
    let not_recorded = collector.0.lock().unwrap().iter().filter(|found| found.span.flags & 1 == 0).count();
    assert_eq!(not_recorded, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_nothing_but_its_spans() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut cluster = Cluster::start(dir.path(), &["--otlp", &format!("http://{nobody}")], &[SOON]);
    ask(&cluster, "Is anybody there?", true).await;
    cluster.signal(rustix::process::Signal::TERM);
    let (status, stderr) = cluster.wait();
    assert!(status.success(), "{stderr}");
    assert!(stderr.contains("traces cannot be sent: spans are dropped"), "{stderr}");
}
