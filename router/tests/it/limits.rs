//! Bounds: requests at once, bytes of a body, slow senders.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker, chat_body, error_of};

#[tokio::test]
async fn without_a_queue_one_request_too_many_is_429_until_one_ends() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndHang(vec![104])).on_generate(Act::say("hello"));
    let router = TestRouter::configured(&[&worker], |config| {
        (config.requests_max, config.queue_max) = (1, 0);
    })
    .await;
    let mut body = chat_body("hi");
    body["stream"] = true.into();
    let mut running = Events::of(router.chat(&body).await);
    running.first_text().await;
    let response = router.chat(&chat_body("hi")).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, error) = error_of(response).await;
    assert_eq!((status, error["code"].as_str()), (429, Some("rate_limit_exceeded")));
    drop(running);
    router.health_until(|health| health["requests_in_flight"] == 0).await;
    assert_eq!(router.chat(&chat_body("hi")).await.status(), 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let body = json!({"model": "toy", "prompt": "x".repeat(5 << 20)});
    let (status, error) = error_of(router.post("/v1/completions", &body).await).await;
    assert_eq!(status, 413);
    assert!(error["message"].as_str().unwrap().contains("4194304"));
}

#[tokio::test]
async fn a_head_or_a_body_that_does_not_come_is_given_up() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router =
        TestRouter::configured(&[&worker], |config| config.read_timeout = Duration::from_millis(300)).await;
    let address = router.base.strip_prefix("http://").unwrap().to_owned();
    for (sent, expected) in [
        // Nothing at all, and what may become HTTP/2.
        ("", None),
        ("PRI * HT", None),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
        ("POST /v1/completions HTTP/1.1\r\nHost: x\r\n", None),
        (
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
            Some("408"),
        ),
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        match expected {
            Some(status) => assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}"),
            None => assert!(!answer.contains("200 OK"), "{answer}"),
        }
    }
}

#[tokio::test]
async fn more_slow_bodies_than_are_read_at_once_only_delay_the_others() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router =
        TestRouter::configured(&[&worker], |config| config.read_timeout = Duration::from_millis(300)).await;
    let address = router.base.strip_prefix("http://").unwrap().to_owned();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    let mut slow = Vec::new();
    for _ in 0..70 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    assert_eq!(router.chat(&chat_body("hi")).await.status(), 200);
    for mut stream in slow {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
}
