//! Backends that tell of their caches, as vLLM and SGLang do, over real ZMQ sockets.

use std::{collections::BTreeMap, net::TcpListener, sync::Arc};

use kelvin_router::{BackendSpec, ModelSource};
use parking_lot::Mutex;
use rmpv::Value as Packed;
use serde_json::json;
use tokio::task::JoinHandle;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::harness::{Do, TestBackend, TestRouter, completion, until};

const BLOCK: usize = 16;

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An engine's publisher with its replay socket.
struct Publisher {
    socket: PubSocket,
    events: u16,
    replay: u16,
    kept: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
    next: u64,
    replayer: JoinHandle<()>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.replayer.abort();
    }
}

fn message(number: u64, payload: &[u8]) -> ZmqMessage {
    let frames: Vec<axum::body::Bytes> = vec![number.to_be_bytes().to_vec().into(), payload.to_vec().into()];
    ZmqMessage::try_from(frames).unwrap()
}

fn list(values: Vec<Packed>) -> Packed {
    Packed::Array(values)
}

impl Publisher {
    async fn start() -> Self {
        Self::at(free(), free()).await
    }

    async fn at(events: u16, replay: u16) -> Self {
        let mut socket = PubSocket::new();
        socket.bind(&format!("tcp://127.0.0.1:{events}")).await.unwrap();
        let kept: Arc<Mutex<BTreeMap<u64, Vec<u8>>>> = Arc::default();
        let mut answers = RouterSocket::new();
        answers.bind(&format!("tcp://127.0.0.1:{replay}")).await.unwrap();
        let replayer = tokio::spawn({
            let kept = kept.clone();
            async move {
                while let Ok(question) = answers.recv().await {
                    let frames = question.into_vec();
                    assert_eq!((frames.len(), frames[1].len()), (3, 0), "identity, nothing, number");
                    let from = u64::from_be_bytes(frames[2].as_ref().try_into().unwrap());
                    let batches: Vec<_> = kept.lock().range(from..).map(|(n, p)| (*n, p.clone())).collect();
                    for (number, payload) in batches.into_iter().chain([(u64::MAX, vec![])]) {
                        let mut answer = message(number, &payload);
                        answer.push_front(Default::default());
                        answer.push_front(frames[0].clone());
                        answers.send(answer).await.unwrap();
                    }
                }
            }
        });
        Self { socket, events, replay, kept, next: 0, replayer }
    }

    /// Publishes one event; a subscriber may miss it.
    async fn say(&mut self, event: Packed) {
        let value = list(vec![0.5.into(), list(vec![event])]);
        let mut payload = Vec::new();
        rmpv::encode::write_value(&mut payload, &value).unwrap();
        let mut framed = message(self.next, &payload);
        framed.push_front("".as_bytes().to_vec().into());
        self.socket.send(framed).await.unwrap();
        self.kept.lock().insert(self.next, payload);
        self.next += 1;
    }

    /// Blocks of `text`, whose tokens are its bytes.
    async fn stored(&mut self, text: &str) {
        let whole = text.len() / BLOCK * BLOCK;
        // An engine's own, and nobody else's.
        let first = 1000 * (self.next + 1);
        let hash = |at: usize| Packed::from(first + at as u64);
        let event = Packed::Map(vec![
            ("type".into(), "BlockStored".into()),
            ("block_hashes".into(), list((0..whole / BLOCK).map(hash).collect())),
            ("parent_block_hash".into(), Packed::Nil),
            ("token_ids".into(), list(text.bytes().take(whole).map(Packed::from).collect())),
            ("block_size".into(), (BLOCK as u64).into()),
            ("medium".into(), "GPU".into()),
        ]);
        self.say(event).await;
    }

    async fn cleared(&mut self) {
        self.say(list(vec!["AllBlocksCleared".into()])).await;
    }
}

fn spec(backend: &TestBackend, publisher: &Publisher) -> BackendSpec {
    BackendSpec {
        events: Some(format!("tcp://127.0.0.1:{}", publisher.events)),
        replay: Some(format!("tcp://127.0.0.1:{}", publisher.replay)),
        ..BackendSpec::new(backend.url())
    }
}

async fn router(specs: Vec<BackendSpec>) -> TestRouter {
    TestRouter::before(&[], |config| {
        config.backends = specs;
        config.model = Some(ModelSource::Toy);
    })
    .await
}

async fn cache_is(router: &TestRouter, modes: &[&str]) {
    router
        .health_until(|health| {
            let backends = health["backends"].as_array().unwrap();
            backends.iter().map(|backend| backend["cache"].as_str().unwrap()).eq(modes.iter().copied())
        })
        .await;
}

/// Who answers a completion of `prompt`.
async fn who(router: &TestRouter, prompt: &str) -> String {
    let response = router.post("/v1/completions", &json!({"model": "m", "prompt": prompt})).await;
    let text = response.text().await.unwrap();
    let named = ["one", "two"].into_iter().find(|name| text.contains(name));
    named.map_or(text.clone(), str::to_owned)
}

#[tokio::test]
async fn a_prompt_goes_to_the_engine_that_says_it_has_it() {
    let (one, two) = (TestBackend::start("one").await.takes(20), TestBackend::start("two").await.takes(20));
    let (mut first, mut second) = (Publisher::start().await, Publisher::start().await);
    let router = router(vec![spec(&one, &first), spec(&two, &second)]).await;
    cache_is(&router, &["exact", "exact"]).await;
    let prompts: Vec<String> = (0..6).map(|n| format!("prompt {n} ").repeat(20)).collect();
    for (at, prompt) in prompts.iter().enumerate() {
        let publisher = if at % 2 == 0 { &mut first } else { &mut second };
        publisher.stored(prompt).await;
    }
    until(|| async {
        (router.metric("kelvin_router_feed_events_total{kind=\"batches\"}").await? >= 6.0).then_some(())
    })
    .await;
    for _ in 0..3 {
        for (at, prompt) in prompts.iter().enumerate() {
            let expected = if at % 2 == 0 { "one" } else { "two" };
            assert_eq!(who(&router, &format!("{prompt} and a question")).await, expected, "{at}");
        }
    }
    first.cleared().await;
    second.stored(&prompts[0]).await;
    until(|| async { (who(&router, &prompts[0]).await == "two").then_some(()) }).await;
    assert_eq!(router.metric("kelvin_router_feeds{mode=\"exact\"}").await, Some(2.0));
}

#[tokio::test]
async fn a_prefix_that_many_ask_for_at_once_spreads() {
    let (one, two) = (TestBackend::start("one").await.takes(500), TestBackend::start("two").await.takes(500));
    let (mut first, mut second) = (Publisher::start().await, Publisher::start().await);
    let router = router(vec![spec(&one, &first), spec(&two, &second)]).await;
    cache_is(&router, &["exact", "exact"]).await;
    let prompt = "everybody asks behind this very beginning ".repeat(6);
    let known = async |batches: f64| {
        let line = "kelvin_router_feed_events_total{kind=\"batches\"}";
        until(|| async { (router.metric(line).await? >= batches).then_some(()) }).await;
    };
    first.stored(&prompt).await;
    known(1.0).await;
    // All at once; how many each engine got.
    let ask = async |count: usize| {
        let before = [one.requests().len(), two.requests().len()];
        let answers = futures::future::join_all((0..count).map(|_| who(&router, &prompt))).await;
        assert!(answers.iter().all(|answer| ["one", "two"].contains(&answer.as_str())), "{answers:?}");
        [one.requests().len() - before[0], two.requests().len() - before[1]]
    };
    // Up to some queue it is the one that has it; behind that queue computing it elsewhere is sooner, and whoever
    // comes next finds it in work there, long before an event tells.
    let [holder, other] = ask(80).await;
    assert!(other >= 20 && holder >= 30 && holder + other == 80, "{holder} and {other}");
    // Nothing was stored there after all, so what was believed of it goes.
    until(|| async { (router.metric("kelvin_router_directory_coming").await == Some(0.0)).then_some(()) })
        .await;
    let [holder, other] = ask(2).await;
    assert_eq!([holder, other], [2, 0]);
    // Then there are two that have it.
    second.stored(&prompt).await;
    known(2.0).await;
    let [holder, other] = ask(40).await;
    assert!(holder >= 10 && other >= 10 && holder + other == 40, "{holder} and {other}");
}

#[tokio::test]
async fn what_was_said_before_and_what_was_missed_is_asked_for() {
    let (one, two) = (TestBackend::start("one").await.takes(20), TestBackend::start("two").await.takes(20));
    let (mut first, second) = (Publisher::start().await, Publisher::start().await);
    let prompt = "said before anybody listened ".repeat(8);
    first.stored(&prompt).await;
    let router = router(vec![spec(&one, &first), spec(&two, &second)]).await;
    cache_is(&router, &["exact", "exact"]).await;
    assert_eq!(who(&router, &prompt).await, "one");
    // One batch is lost on its way.
    let missed = "missed on the way ".repeat(8);
    let mut socket = std::mem::replace(&mut first.socket, PubSocket::new());
    first.stored(&missed).await;
    std::mem::swap(&mut first.socket, &mut socket);
    first.stored(&"another one ".repeat(8)).await;
    until(|| async {
        (router.metric("kelvin_router_feed_events_total{kind=\"gaps\"}").await? == 1.0).then_some(())
    })
    .await;
    cache_is(&router, &["exact", "exact"]).await;
    for _ in 0..4 {
        assert_eq!(who(&router, &missed).await, "one");
    }
}

#[tokio::test]
async fn a_gap_that_cannot_be_filled_degrades_and_a_cleared_cache_mends_it() {
    let one = TestBackend::start("one").await.takes(20);
    let mut first = Publisher::start().await;
    let router = router(vec![BackendSpec { replay: None, ..spec(&one, &first) }]).await;
    // Without a replay socket the first batch must be heard: a subscriber is not there at once.
    while router.health().await["backends"][0]["cache"] != "exact" {
        first.next = 0;
        first.cleared().await;
    }
    first.next += 5;
    first.stored(&"after a gap ".repeat(8)).await;
    cache_is(&router, &["degraded"]).await;
    assert_eq!(
        router.chat(&json!({"model": "m", "messages": [{"role": "user", "content": "x"}]})).await.status(),
        200
    );
    first.cleared().await;
    cache_is(&router, &["exact"]).await;
}

#[tokio::test]
async fn an_engine_that_starts_again_has_nothing() {
    let (one, two) = (TestBackend::start("one").await.takes(20), TestBackend::start("two").await.takes(20));
    let (mut first, second) = (Publisher::start().await, Publisher::start().await);
    let router = router(vec![spec(&one, &first), spec(&two, &second)]).await;
    cache_is(&router, &["exact", "exact"]).await;
    let prompt = "what the first start had ".repeat(8);
    first.stored(&prompt).await;
    until(|| async { (router.metric("kelvin_router_directory_blocks").await? > 0.0).then_some(()) }).await;
    let (events, replay, address) = (first.events, first.replay, one.address);
    first.replayer.abort();
    drop((first, one));
    cache_is(&router, &["fallback", "exact"]).await;
    assert_eq!(router.metric("kelvin_router_directory_blocks").await, Some(0.0));
    let mut again = until(|| async {
        let socket = std::net::TcpListener::bind(("127.0.0.1", events))
            .and(std::net::TcpListener::bind(("127.0.0.1", replay)));
        drop(socket.ok()?);
        Some(Publisher::at(events, replay).await)
    })
    .await;
    let _one = TestBackend::at(address, "one").await;
    cache_is(&router, &["exact", "exact"]).await;
    again.stored(&prompt).await;
    until(|| async { (router.metric("kelvin_router_directory_blocks").await? > 0.0).then_some(()) }).await;
}

#[tokio::test]
async fn without_events_routing_believes_what_it_did() {
    let (one, two) = (TestBackend::start("one").await.takes(20), TestBackend::start("two").await.takes(20));
    let router = TestRouter::before(&[&one, &two], |_| {}).await;
    cache_is(&router, &["fallback", "fallback"]).await;
    for number in 0..8 {
        let prompt = format!("a prompt that comes again, number {number} ").repeat(30);
        let first = who(&router, &prompt).await;
        for turn in 0..4 {
            let next = format!("{prompt} and then turn {turn}");
            assert_eq!(who(&router, &next).await, first, "{number} {turn}");
        }
    }
    // One that leaves takes what was believed of it with it.
    one.always(Do::Answer(200, completion("one")));
    drop(one);
    router.health_until(|health| health["backends"].to_string().contains("lost")).await;
    assert!(router.metric("kelvin_router_directory_blocks").await.is_some());
}

/// What of a conversation has no tokens here, or none that are sure to be the engine's.
#[tokio::test]
async fn tools_and_images_are_known_by_what_was_sent_where_in_spite_of_events() {
    let (one, two) = (TestBackend::start("one").await.takes(20), TestBackend::start("two").await.takes(20));
    let (first, second) = (Publisher::start().await, Publisher::start().await);
    let router = router(vec![spec(&one, &first), spec(&two, &second)]).await;
    cache_is(&router, &["exact", "exact"]).await;
    let who = async |body: &serde_json::Value| {
        let text = router.chat(body).await.text().await.unwrap();
        if text.contains("two") { "two" } else { "one" }
    };
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d".repeat(500)}});
    for number in 0..8 {
        let prompt = format!("a prompt that comes again, number {number} ").repeat(30);
        let with_image = json!([{"type": "text", "text": prompt}, image]);
        let mut chats = [
            json!({"model": "m", "messages": [{"role": "user", "content": prompt}], "tools": [tool]}),
            json!({"model": "m", "messages": [{"role": "user", "content": with_image}]}),
        ];
        for body in &mut chats {
            let first = who(body).await;
            for turn in 0..4 {
                let messages = body["messages"].as_array_mut().unwrap();
                messages.push(json!({"role": "assistant", "content": format!("answer {turn}")}));
                messages.push(json!({"role": "user", "content": "go on"}));
                assert_eq!(who(body).await, first, "{number} {turn}");
            }
        }
    }
}

#[tokio::test]
async fn a_long_prompt_that_is_cached_is_no_long_one() {
    let one = TestBackend::start("one").await.takes(20);
    let router = TestRouter::before(&[&one], |config| config.long_tokens = 1000).await;
    let prompt = "a prompt of more than a thousand tokens ".repeat(200);
    let waited = async |class: &str| {
        let line = format!("kelvin_router_queue_wait_seconds_count{{class=\"{class}\"}}");
        router.metric(&line).await.unwrap_or(0.0)
    };
    assert_eq!(who(&router, &prompt).await, "one");
    assert_eq!((waited("long").await, waited("short").await), (1.0, 0.0));
    assert_eq!(who(&router, &format!("{prompt} and more")).await, "one");
    assert_eq!((waited("long").await, waited("short").await), (1.0, 1.0));
}
