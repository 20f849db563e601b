//! Starting and ending.

use std::{net::SocketAddr, time::Duration};

use kelvin_router::{Error, ModelSource, RouterConfig, serve};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker, chat_body};

fn streamed() -> Value {
    let mut body = chat_body("hi");
    body["stream"] = true.into();
    body
}

#[tokio::test]
async fn a_stream_may_end_within_the_grace_period() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let events = Events::of(router.chat(&streamed()).await);
    router.shutdown.cancel();
    let (text, last) = events.text().await;
    assert_eq!((text.as_str(), last.as_str()), ("hello", "[DONE]"));
    let base = router.base.clone();
    router.ended().await.unwrap();
    assert!(reqwest::get(format!("{base}/health")).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn after_the_grace_period_a_stream_ends_with_an_error_event() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndHang(vec![104]));
    let router =
        TestRouter::configured(&[&worker], |config| config.drain_grace = Duration::from_millis(100)).await;
    let mut events = Events::of(router.chat(&streamed()).await);
    assert_eq!(events.first_text().await, "h");
    router.shutdown.cancel();
    let (text, last) = events.text().await;
    let event: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((text.as_str(), event["error"]["code"].as_str()), ("", Some("shutting_down")));
    router.ended().await.unwrap();
}

async fn start_error(config: RouterConfig) -> Error {
    serve(config, |_| panic!("it listens"), CancellationToken::new()).await.expect_err("it must not start")
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let workers = vec!["http://127.0.0.1:1".to_owned()];
    let config = || RouterConfig {
        workers: workers.clone(),
        model: Some(ModelSource::Toy),
        ..RouterConfig::default()
    };
    let open = SocketAddr::from(([0, 0, 0, 0], 0));
    let error = start_error(RouterConfig { listen: open, ..config() }).await;
    assert!(error.to_string().contains("only loopback addresses"), "{error}");
    let error = start_error(RouterConfig { workers: vec![], ..config() }).await;
    assert!(matches!(error, Error::NoWorkers));
    for bad in ["127.0.0.1:7450", "https://127.0.0.1:7450", "http://127.0.0.1", "nonsense with spaces"] {
        let error = start_error(RouterConfig { workers: vec![bad.into()], ..config() }).await;
        assert!(error.to_string().contains(bad), "{error}");
    }
    let error =
        start_error(RouterConfig { model: Some(ModelSource::Gguf("/none.gguf".into())), ..config() }).await;
    assert!(error.to_string().contains("/none.gguf"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let error = start_error(RouterConfig { listen, ..config() }).await;
    assert!(error.is_retryable() && error.to_string().contains(&listen.to_string()), "{error}");
}
