//! Many streams at once in bounded memory, and clients that do not read.
//!
//! Ten thousand streams take a connection each between router and backend, so the backend is a process of its own:
//! this test's binary again. Clients share connections by HTTP/2.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kelvin_router::BackendSpec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::harness::{Do, TestBackend, TestRouter, event, until};

const STREAMS: usize = 10_000;
/// Streams of a client's connection.
const SHARED: usize = 100;
/// Memory of one idle stream, both of its ends in the router and the client's in this test included. About half of it
/// is the buffer that a connection of HTTP/1 to a backend reads into.
const STREAM_BYTES_MAX: usize = 48 << 10;
/// Says that this process is to be the backend.
const BACKEND: &str = "KELVIN_TEST_IDLE_BACKEND";

/// Not a test by itself: the backend of the next one.
#[tokio::test]
async fn idle_backend() {
    if std::env::var_os(BACKEND).is_none() {
        return;
    }
    open_files();
    let backend = TestBackend::start("idle").await;
    backend.always(Do::StreamAndHang(vec![event("first")]));
    println!("\nlistens on {}", backend.url());
    // Until the test that started it is gone.
    let mut line = String::new();
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut line)).await.unwrap().unwrap();
}

struct IdleBackend(Child);

impl Drop for IdleBackend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl IdleBackend {
    fn start() -> (Self, String) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "streams::idle_backend", "--nocapture", "--test-threads", "1"])
            .env(BACKEND, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listens on ").map(str::to_owned));
        // Whatever else it says is read, so that it never waits for that.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        (Self(child), said.expect("it says where it listens"))
    }
}

/// Raises the limit of open files as far as this user may; returns it.
fn open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

type Client = http2::SendRequest<Full<Bytes>>;

async fn client(router: &TestRouter) -> Client {
    let stream = TcpStream::connect(router.base.strip_prefix("http://").unwrap()).await.unwrap();
    let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A stream whose first piece is there.
async fn stream(mut client: Client, base: String) -> Response<Incoming> {
    let body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let request = Request::post(format!("{base}/v1/chat/completions"))
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .unwrap();
    client.ready().await.unwrap();
    let mut response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let first = response.body_mut().frame().await.unwrap().unwrap();
    assert!(first.into_data().unwrap().starts_with(b"data: "));
    response
}

/// As many more streams, some at a time.
async fn open(router: &TestRouter, count: usize) -> Vec<Response<Incoming>> {
    let mut streams = Vec::new();
    while streams.len() < count {
        let client = client(router).await;
        let some =
            (0..SHARED.min(count - streams.len())).map(|_| stream(client.clone(), router.base.clone()));
        streams.extend(futures::future::join_all(some).await);
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_streams_take_little_memory() {
    let files = open_files();
    let streams = STREAMS.min(files.saturating_sub(files / 10 + 500));
    if streams < STREAMS {
        eprintln!("*** {streams} STREAMS INSTEAD OF {STREAMS}: no more than {files} files may be open ***");
    }
    let (_backend, url) = IdleBackend::start();
    let router = TestRouter::before(&[], |config| {
        config.backends = vec![BackendSpec { requests_max: 20_000, ..BackendSpec::new(url) }];
        config.requests_max = 20_000;
        config.token_timeout = Duration::from_secs(3600);
    })
    .await;
    // What is allocated once is not a stream's.
    let mut held = open(&router, SHARED).await;
    let before = resident();
    held.extend(open(&router, streams - SHARED).await);
    let bytes = resident().saturating_sub(before) / (streams - SHARED);
    println!("{streams} idle streams: {bytes} bytes each");
    assert!(bytes <= STREAM_BYTES_MAX, "{bytes} bytes a stream");
    let health = router.health().await;
    assert_eq!(health["requests_in_flight"], streams);
    assert_eq!(health["backends"][0]["in_flight"], streams);
    assert_eq!(router.metric("kelvin_router_requests_in_flight").await, Some(streams as f64));
    drop(held);
    router
        .health_until(|health| health["requests_in_flight"] == 0 && health["backends"][0]["in_flight"] == 0)
        .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_its_work_cancelled() {
    let backend = TestBackend::start("one").await;
    // More than all the buffers on the way take.
    backend.always(Do::StreamAndHang(vec![event(&"x".repeat(64 << 10)); 512]));
    let router = TestRouter::before(&[&backend], |config| {
        config.client_timeout = Duration::from_millis(500);
    })
    .await;
    let mut client = TcpStream::connect(router.base.strip_prefix("http://").unwrap()).await.unwrap();
    let body =
        json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes()).await.unwrap();
    until(|| async { (backend.requests().len() == 1).then_some(()) }).await;
    router
        .health_until(|health| health["requests_in_flight"] == 0 && health["backends"][0]["in_flight"] == 0)
        .await;
    let stalled = "kelvin_router_connections_ended_total{end=\"client_stalled\"}";
    until(|| async { (router.metric(stalled).await == Some(1.0)).then_some(()) }).await;
    drop(client);
    // Its backend is none the worse for it.
    assert_eq!(router.health().await["backends"][0]["circuit"], "closed");
}

#[tokio::test]
async fn a_client_of_http_2_that_grants_no_window_is_cut_off_as_well() {
    let backend = TestBackend::start("one").await;
    backend.always(Do::StreamAndHang(vec![event("first")]));
    let router = TestRouter::before(&[&backend], |config| {
        config.client_timeout = Duration::from_millis(300);
    })
    .await;
    let socket = TcpStream::connect(router.base.strip_prefix("http://").unwrap()).await.unwrap();
    let (mut client, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake::<_, Full<Bytes>>(TokioIo::new(socket))
        .await
        .unwrap();
    // It answers pings, so that the connection counts as alive.
    let connection = tokio::spawn(connection);
    let body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let request = Request::post(format!("{}/v1/chat/completions", router.base))
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .unwrap();
    client.ready().await.unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    until(|| async { (backend.gone() == 1).then_some(()) }).await;
    router
        .health_until(|health| health["requests_in_flight"] == 0 && health["backends"][0]["in_flight"] == 0)
        .await;
    let stalled = "kelvin_router_errors_total{kind=\"client_stalled\"}";
    assert_eq!(router.metric(stalled).await, Some(1.0));
    assert_eq!(router.health().await["backends"][0]["circuit"], "closed");
    drop(response);
    connection.abort();
}

#[tokio::test]
async fn a_client_that_reads_may_wait_for_as_long_as_it_takes() {
    let backend = TestBackend::start("one").await;
    backend.always(Do::StreamAndHang(vec![event("first")]));
    let router = TestRouter::before(&[&backend], |config| {
        config.client_timeout = Duration::from_millis(300);
        config.token_timeout = Duration::from_secs(2);
    })
    .await;
    let body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let text = router.chat(&body).await.text().await.unwrap();
    assert!(text.contains("first") && text.contains("backend_stalled"), "{text}");
}

#[tokio::test]
async fn heads_that_are_none_and_heads_too_large_are_counted() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |_| {}).await;
    let ended = async |end: &str| {
        router.metric(&format!("kelvin_router_connections_ended_total{{end=\"{end}\"}}")).await
    };
    let long = format!("POST / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("POST / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(1000));
    for bytes in [long, many, "nonsense\r\n\r\n".into()] {
        let mut stream = TcpStream::connect(router.base.strip_prefix("http://").unwrap()).await.unwrap();
        // It may be closed before all of it is there.
        let _ = stream.write_all(bytes.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
    }
    until(|| async {
        (ended("head_too_large").await? >= 1.0 && ended("no_request").await? >= 1.0).then_some(())
    })
    .await;
    assert!(backend.requests().is_empty());
}
