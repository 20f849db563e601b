//! Decode workers that are lost in mid-stream while others are there.

use kelvin_proto::Reason;
use serde_json::{Value, json};

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker, until};

fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn body() -> Value {
    json!({"model": "toy", "prompt": "say it", "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 40})
}

/// Workers of which the first is asked first, the second next, and so on.
fn in_turn<const N: usize>() -> [TestWorker; N] {
    std::array::from_fn(|index| {
        let worker = TestWorker::start(Setup::decode(&format!("d{index}")));
        worker.describe(|described| described.load.as_mut().unwrap().running = 2 * index as u32);
        worker
    })
}

/// Text, the reason of its end, and usage.
async fn whole(events: Events) -> (String, String, Value) {
    let events = events.rest().await;
    assert_eq!(events.last().unwrap(), "[DONE]", "{events:?}");
    let parsed: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let text = parsed.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    let finish = parsed.iter().find_map(|event| event["choices"][0]["finish_reason"].as_str());
    (text, finish.unwrap().to_owned(), parsed.last().unwrap()["usage"].clone())
}

async fn metric(router: &TestRouter, name: &str) -> f64 {
    router.metric(&format!("kelvin_router_{name}_total")).await.unwrap()
}

#[tokio::test]
async fn a_killed_workers_stream_goes_on_at_another() {
    let [first, second] = in_turn();
    first.on_generate(Act::SayAndHang(tokens("half an ans")));
    second.on_generate(Act::Say { tokens: tokens("wer"), imported: 0 });
    let router = TestRouter::start(&[&first, &second]).await;
    let mut events = Events::of(router.post("/v1/completions", &body()).await);
    let mut begun = String::new();
    while begun != "half an ans" {
        begun.push_str(&events.first_text().await);
    }
    first.kill();
    let (rest, finish, usage) = whole(events).await;
    assert_eq!((rest.as_str(), finish.as_str()), ("wer", "stop"));
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(6), &json!(14)));

    let (asked, resumed) = (first.generates().remove(0), second.generates().remove(0));
    assert_eq!((asked.generated_tokens, asked.tokens_max), (0, 40));
    assert_eq!(resumed.tokens, tokens("say ithalf an ans"));
    assert_eq!((resumed.generated_tokens, resumed.tokens_max), (11, 29));
    assert_eq!(resumed.request_id, asked.request_id);

    router.health_until(|health| health["requests_in_flight"] == 0).await;
    assert_eq!(metric(&router, "migrations").await, 1.0);
    assert_eq!(metric(&router, "migration_tokens").await, 17.0);
    assert_eq!(router.metric("kelvin_router_errors_total{kind=\"worker_lost\"}").await, None);
    assert_eq!(metric(&router, "generated_tokens").await, 14.0);
}

#[tokio::test]
async fn any_failure_in_mid_stream_that_another_may_not_have_moves_it() {
    let failures = [
        Act::SayAndEnd(tokens("so ")),
        Act::SayAndFail(tokens("so "), Reason::Unavailable),
        Act::SayAndFail(tokens("so "), Reason::EngineFailed),
        Act::Say { tokens: [tokens("so "), vec![4_000_000_000]].concat(), imported: 0 },
    ];
    for act in failures {
        let [first, second] = in_turn();
        first.on_generate(act.clone());
        second.on_generate(Act::say("far"));
        let router = TestRouter::start(&[&first, &second]).await;
        let (text, ..) = whole(Events::of(router.post("/v1/completions", &body()).await)).await;
        assert_eq!(text, "so far", "{act:?}");
    }
    let [first, second] = in_turn();
    first.on_generate(Act::SayAndFail(tokens("so "), Reason::InvalidArgument));
    let router = TestRouter::start(&[&first, &second]).await;
    let (text, last) = Events::of(router.post("/v1/completions", &body()).await).text().await;
    assert!(text == "so " && last.contains("\"error\""), "{last}");
    assert!(second.generates().is_empty(), "another one would find the same wrong");
}

#[tokio::test]
async fn what_is_made_of_tokens_does_not_see_the_seam() {
    let [first, second] = in_turn();
    first.on_generate(Act::SayAndEnd(tokens("caf\u{e9} \u{20ac}")[..7].to_vec()));
    let rest = [&"\u{20ac}".as_bytes()[1..], b" STOP more"].concat();
    second.on_generate(Act::SayAndHang(rest.into_iter().map(u32::from).collect()));
    let router = TestRouter::start(&[&first, &second]).await;
    let mut body = body();
    (body["stop"], body["logprobs"]) = ("ST".into(), 1.into());
    let (text, finish, usage) = whole(Events::of(router.post("/v1/completions", &body).await)).await;
    assert_eq!((text.as_str(), finish.as_str()), ("caf\u{e9} \u{20ac} ", "stop"));
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(second.generates()[0].logprobs, first.generates()[0].logprobs);
    until(|| async { (second.cancelled() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn all_choices_of_a_request_move_alone() {
    let [first, second] = in_turn();
    first.on_generate(Act::SayAndEnd(tokens("on"))).on_generate(Act::say("two"));
    second.on_generate(Act::say("e"));
    let router = TestRouter::start(&[&first, &second]).await;
    let body = json!({"model": "toy", "prompt": "count", "n": 2});
    let answer: Value = router.post("/v1/completions", &body).await.json().await.unwrap();
    let texts: Vec<_> = (0..2).map(|index| answer["choices"][index]["text"].as_str().unwrap()).collect();
    assert!(texts[0] == "one", "{answer}");
}

#[tokio::test]
async fn a_stream_that_lacks_its_last_message_alone_just_ends() {
    let [first, second] = in_turn();
    first.on_generate(Act::SayAndEnd(tokens("four")));
    let router = TestRouter::start(&[&first, &second]).await;
    let mut body = body();
    body["max_tokens"] = 4.into();
    let (text, finish, _) = whole(Events::of(router.post("/v1/completions", &body).await)).await;
    assert_eq!((text.as_str(), finish.as_str()), ("four", "length"));
    assert!(second.generates().is_empty());
    assert_eq!(metric(&router, "migrations").await, 0.0);
}

#[tokio::test]
async fn a_request_that_kills_its_workers_ends_before_they_are_all_gone() {
    let workers: [TestWorker; 4] = in_turn();
    for worker in &workers {
        worker.on_generate(Act::SayAndEnd(tokens("x")));
    }
    let all: Vec<&TestWorker> = workers.iter().collect();
    let router = TestRouter::start(&all).await;
    let (text, last) = Events::of(router.post("/v1/completions", &body()).await).text().await;
    assert_eq!(text, "xxx", "the first one's, and that of two more");
    let error: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(error["error"]["code"], "worker_lost");
    assert_eq!(workers.iter().map(|worker| worker.generates().len()).sum::<usize>(), 3);
    assert_eq!(metric(&router, "migrations").await, 2.0);
}

#[tokio::test]
async fn an_only_worker_that_is_started_again_goes_on() {
    let first = TestWorker::start(Setup::decode("d"));
    first.on_generate(Act::SayAndHang(tokens("so ")));
    let router = TestRouter::configured(&[&first], |config| {
        config.migration_wait = std::time::Duration::from_secs(60);
    })
    .await;
    let mut events = Events::of(router.post("/v1/completions", &body()).await);
    let mut begun = String::new();
    while begun != "so " {
        begun.push_str(&events.first_text().await);
    }
    let listen = first.listen();
    first.kill();
    router.health_until(|health| health["workers"][0]["state"] == "lost").await;
    until(|| async { std::net::TcpListener::bind(listen).ok().map(drop) }).await;
    let again = TestWorker::start(Setup { listen, ..Setup::decode("d") });
    again.on_generate(Act::say("far"));
    let (rest, ..) = whole(events).await;
    assert_eq!(rest, "far");
    assert_eq!(again.generates()[0].generated_tokens, 3);
}

#[tokio::test]
async fn a_refusal_on_the_way_is_a_try() {
    let workers: [TestWorker; 3] = in_turn();
    workers[0].on_generate(Act::SayAndEnd(tokens("a")));
    workers[1].on_generate(Act::Refuse(Reason::Exhausted));
    workers[2].on_generate(Act::say("b"));
    let router = TestRouter::start(&[&workers[0], &workers[1], &workers[2]]).await;
    let (text, ..) = whole(Events::of(router.post("/v1/completions", &body()).await)).await;
    assert_eq!(text, "ab");

    let [first, second] = in_turn();
    first.on_generate(Act::SayAndEnd(tokens("a")));
    let router = TestRouter::configured(&[&first, &second], |config| config.migrations_max = 0).await;
    let (text, last) = Events::of(router.post("/v1/completions", &body()).await).text().await;
    assert!(text == "a" && last.contains("worker_lost"), "{last}");
    assert!(second.generates().is_empty());
}
