//! Everything at once: eight clients, one leaves, one sends garbage, a decode worker is killed.

use rustix::process::Signal;

use super::client::{Events, Streamed, completion, post};
use crate::harness::{Cluster, signal, until};

const CLIENTS: usize = 8;
const TOKENS: u32 = 120;
/// Events that each client reads before the kill; the first has no text.
const BEFORE_THE_KILL: usize = 12;
const SLOW: [(&str, &str); 1] = [("KELVIN_TOY_STEP_TIME", "25ms")];

fn prompt(client: usize) -> String {
    format!("client {client} asks: ").repeat(12)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_streams_go_on_at_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let up = Cluster::start(dir.path(), &["--decode", "2"], &SLOW);
    // What each client gets when nothing happens. The toy's text does not depend on its company.
    let calm = futures::future::join_all((0..CLIENTS).map(|client| {
        let body = completion(up.model(), &prompt(client), TOKENS);
        let url = up.url("");
        async move { Events::open(&url, "/v1/completions", &body).await.collect().await }
    }))
    .await;
    for answer in &calm {
        assert_eq!((answer.finish.as_deref(), answer.done), (Some("length"), true), "{answer:?}");
    }

    let mut streams = Vec::new();
    for client in 0..CLIENTS {
        let body = completion(up.model(), &prompt(client), TOKENS);
        let mut events = Events::open(&up.url(""), "/v1/completions", &body).await;
        let mut streamed = Streamed::default();
        for _ in 0..BEFORE_THE_KILL {
            streamed.add(&events.next().await.expect("it goes on"));
        }
        assert!(!streamed.text.is_empty() && streamed.finish.is_none());
        streams.push((client, events, streamed));
    }
    let (leaver, events, _) = streams.remove(0);
    drop(events);
    let garbage = crate::harness::http()
        .build()
        .unwrap()
        .post(up.url("/v1/completions"))
        .header("content-type", "application/json")
        .body("{\"model\": \u{1}")
        .send()
        .await
        .unwrap();
    assert_eq!(garbage.status(), 400);
    let killed = up.child("decode-0");
    signal(killed, Signal::KILL);

    let ends =
        futures::future::join_all(streams.into_iter().map(|(client, mut events, mut streamed)| async move {
            while let Some(data) = events.next().await {
                streamed.add(&data);
            }
            (client, streamed)
        }))
        .await;
    // Nobody sees more of it than a pause: no break, nothing twice, nothing missing.
    for (client, streamed) in &ends {
        assert_eq!(streamed, &Streamed { usage: streamed.usage.clone(), ..calm[*client].clone() });
        for count in ["prompt_tokens", "completion_tokens"] {
            assert_eq!(streamed.usage[count], calm[*client].usage[count]);
        }
    }
    let moved = metric(&up, "migrations").await;
    assert!(moved >= 1.0 && moved < ends.len() as f64, "{moved} of {}", ends.len());
    let (tokens, recomputed) =
        (metric(&up, "migration_tokens").await, metric(&up, "migration_recomputed_tokens").await);
    // Each has a block begun, and one or two more that were on their way to the store.
    assert!(recomputed >= moved && recomputed <= moved * 48.0, "{recomputed} of {tokens} for {moved}");
    assert!(recomputed < tokens / 3.0, "{recomputed} of {tokens}");

    let (status, next) =
        post(&up.url(""), "/v1/completions", &completion(up.model(), &prompt(leaver), TOKENS)).await;
    assert_eq!((status, next["choices"][0]["text"].as_str()), (200, Some(calm[leaver].text.as_str())));
    until("the killed worker is back", async || up.children().len() == 5).await;
    assert_ne!(up.child("decode-0"), killed);
    until("no lease is left", async || {
        let stats = up.stats().await;
        (stats.read_leases, stats.write_leases) == (0, 0)
    })
    .await;
    up.stop();
}

async fn metric(up: &Cluster, name: &str) -> f64 {
    let url = format!("{}/metrics", up.ready["router_admin"].as_str().unwrap());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let line = format!("kelvin_router_{name}_total ");
    let value = text.lines().find_map(|shown| shown.strip_prefix(line.as_str()));
    value.unwrap_or_else(|| panic!("no {line}in {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_only_workers_stream_goes_on_once_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let up = Cluster::start(dir.path(), &[], &SLOW);
    let body = completion(up.model(), &prompt(1), TOKENS);
    let calm = Events::open(&up.url(""), "/v1/completions", &body).await.collect().await;
    let mut events = Events::open(&up.url(""), "/v1/completions", &body).await;
    let mut streamed = Streamed::default();
    for _ in 0..BEFORE_THE_KILL {
        streamed.add(&events.next().await.expect("it goes on"));
    }
    signal(up.child("decode-0"), Signal::KILL);
    while let Some(data) = events.next().await {
        streamed.add(&data);
    }
    assert_eq!(streamed, Streamed { usage: streamed.usage.clone(), ..calm });
    assert_eq!(metric(&up, "migrations").await, 1.0);
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_store_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let up = Cluster::start(dir.path(), &[], &[]);
    let ask = async || post(&up.url(""), "/v1/completions", &completion(up.model(), &prompt(1), 8)).await;
    let text = |answer: &serde_json::Value| answer["choices"][0]["text"].clone();
    let (_, before) = ask().await;
    signal(up.child("store"), Signal::KILL);
    until("prompts are found in the store again", async || {
        let (status, answer) = ask().await;
        assert_eq!((status, text(&answer)), (200, text(&before)), "serving goes on without the store");
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0
    })
    .await;
    up.stop();
}
