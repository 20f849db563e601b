//! Which workers get requests.

use std::time::Duration;

use kelvin_router::{ModelSource, RouterConfig};
use serde_json::json;

use crate::harness::{Setup, TestRouter, TestWorker, chat_body, fingerprint, until};

#[tokio::test]
async fn a_worker_with_another_fingerprint_is_refused_and_gets_nothing() {
    let right = TestWorker::start(Setup::decode("right"));
    let mut setup = Setup::decode("wrong");
    setup.described.fingerprint.as_mut().unwrap().dtype = "q8_0".into();
    // It looks better in all but its fingerprint, and comes when the model is defined.
    right.describe(|described| described.load.as_mut().unwrap().running = 5);
    let wrong = TestWorker::start(Setup { described: Default::default(), ..setup.clone() });
    let router = TestRouter::start(&[&right, &wrong]).await;
    wrong.describe(|described| *described = setup.described);
    let health = router
        .health_until(|health| health["workers"][1]["why"].as_str().is_some_and(|why| why.contains("dtype")))
        .await;
    assert_eq!(health["workers"][1]["state"], "refused");
    let why = health["workers"][1]["why"].as_str().unwrap();
    for part in ["differs in dtype", "dtype=q8_0", "dtype=f16", "right"] {
        assert!(why.contains(part), "{part} is not in {why}");
    }
    for _ in 0..4 {
        assert_eq!(router.chat(&chat_body("hi")).await.status(), 200);
    }
    assert_eq!((right.generates().len(), wrong.generates().len()), (4, 0));
    assert_eq!(health["status"], "degraded");
    assert_eq!(router.metric("kelvin_router_workers{role=\"unknown\",state=\"refused\"}").await, Some(1.0));
    wrong.describe(|described| described.fingerprint = Some(fingerprint()));
    router.health_until(|health| health["workers"][1]["state"] == "ready").await;
}

#[tokio::test]
async fn another_block_size_model_or_vocabulary_is_refused() {
    let right = TestWorker::start(Setup::decode("right"));
    let others = ["a", "b", "c"].map(|name| TestWorker::start(Setup::decode(name)));
    for other in &others {
        other.describe(|described| described.vocab_tokens = 7);
    }
    let router = TestRouter::start(&[&right, &others[0], &others[1], &others[2]]).await;
    others[0].describe(|described| (described.vocab_tokens, described.block_tokens) = (258, 32));
    others[1].describe(|described| (described.vocab_tokens, described.model) = (258, "other".into()));
    let says = |words: &'static str, index: usize| {
        let router = &router;
        async move {
            let has = |why: &str| why.contains(words);
            router.health_until(|health| health["workers"][index]["why"].as_str().is_some_and(has)).await;
        }
    };
    says("block_tokens=32", 1).await;
    says("model=other", 2).await;
    says("7 tokens in its vocabulary", 3).await;
}

#[tokio::test]
async fn a_worker_that_comes_back_is_used_again() {
    let worker = TestWorker::start(Setup::decode("first"));
    let router = TestRouter::start(&[&worker]).await;
    let listen = worker.listen();
    worker.kill();
    router.health_until(|health| health["workers"][0]["state"] == "lost").await;
    let again = until(|| async { std::net::TcpListener::bind(listen).ok().map(drop) }).await;
    let () = again;
    let worker = TestWorker::start(Setup { listen, ..Setup::decode("second") });
    let health = router.health_until(|health| health["workers"][0]["state"] == "ready").await;
    assert_eq!(health["workers"][0]["name"], "second");
    assert_eq!(router.chat(&chat_body("hi")).await.status(), 200);
    assert_eq!(worker.generates().len(), 1);
}

#[tokio::test]
async fn a_request_waits_for_a_worker_that_was_lost() {
    let worker = TestWorker::start(Setup::decode("d"));
    let wait = Duration::from_secs(30);
    let router = TestRouter::configured(&[&worker], |config| config.migration_wait = wait).await;
    let listen = worker.listen();
    worker.kill();
    router.health_until(|health| health["workers"][0]["state"] == "lost").await;
    let (body, again) = (chat_body("hi"), async {
        let running = "kelvin_router_requests_in_flight";
        until(|| async { router.metric(running).await.filter(|&count| count == 1.0) }).await;
        until(|| async { std::net::TcpListener::bind(listen).ok().map(drop) }).await;
        TestWorker::start(Setup { listen, ..Setup::decode("d") })
    });
    let (answer, again) = tokio::join!(router.chat(&body), again);
    assert_eq!((answer.status().as_u16(), again.generates().len()), (200, 1));

    again.kill();
    router.health_until(|health| health["workers"][0]["state"] == "lost").await;
    let never = TestRouter::bare(RouterConfig {
        workers: vec![format!("http://{listen}")],
        model: Some(ModelSource::Toy),
        migration_wait: wait,
        ..RouterConfig::default()
    });
    let answer = tokio::time::timeout(wait / 2, never.await.chat(&body)).await;
    assert_eq!(answer.expect("nobody waits for one that there never was").status(), 503);
}

#[tokio::test]
async fn requests_at_once_are_spread_before_any_poll_says_so() {
    let workers = ["d1", "d2"].map(|name| TestWorker::start(Setup::decode(name)));
    for worker in &workers {
        worker.on_generate(crate::harness::Act::SayAndHang(vec![104]));
    }
    let router = TestRouter::start(&[&workers[0], &workers[1]]).await;
    let mut open = Vec::new();
    for _ in 0..6 {
        let body = json!({"model": "toy", "prompt": "hi", "stream": true});
        open.push(router.post("/v1/completions", &body).await);
    }
    assert_eq!(workers.iter().map(|worker| worker.generates().len()).collect::<Vec<_>>(), [3, 3]);
}

#[tokio::test]
async fn the_model_is_listed_by_the_workers_name_for_it() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.describe(|described| described.model = "org/toy-1".into());
    let router = TestRouter::start(&[&worker]).await;
    let list: serde_json::Value = router.get("/v1/models").await.json().await.unwrap();
    assert_eq!((list["object"].as_str(), list["data"][0]["id"].as_str()), (Some("list"), Some("org/toy-1")));
    assert_eq!(list["data"][0]["max_model_len"], 512);
    let one: serde_json::Value = router.get("/v1/models/org/toy-1").await.json().await.unwrap();
    assert_eq!(one, list["data"][0]);
}
