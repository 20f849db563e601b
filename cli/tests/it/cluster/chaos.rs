//! Everything at once: eight clients, one leaves, one sends garbage, a decode worker is killed.

use std::path::Path;

use super::{
    client::{Events, Streamed, completion, post},
    process::{Up, eventually},
};

const CLIENTS: usize = 8;
const TOKENS: u32 = 120;
/// Events that each client reads before the kill; the first has no text.
const BEFORE_THE_KILL: usize = 12;
const SLOW: [(&str, &str); 1] = [("KELVIN_TOY_STEP_TIME", "25ms")];

fn prompt(client: usize) -> String {
    format!("client {client} asks: ").repeat(12)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_ends_its_own_streams_with_an_error_and_no_others() {
    let up = Up::start(&["--model", "toy", "--decode", "2"], &SLOW);
    // What each client gets when nothing happens. The toy's text does not depend on its company.
    let calm = futures::future::join_all((0..CLIENTS).map(|client| {
        let body = completion(&up.model, &prompt(client), TOKENS);
        let url = up.url.clone();
        async move { Events::open(&url, "/v1/completions", &body).await.collect().await }
    }))
    .await;
    for answer in &calm {
        assert_eq!((answer.finish.as_deref(), answer.done), (Some("length"), true), "{answer:?}");
    }

    let mut streams = Vec::new();
    for client in 0..CLIENTS {
        let body = completion(&up.model, &prompt(client), TOKENS);
        let mut events = Events::open(&up.url, "/v1/completions", &body).await;
        let mut streamed = Streamed::default();
        for _ in 0..BEFORE_THE_KILL {
            streamed.add(&events.next().await.expect("it goes on"));
        }
        assert!(!streamed.text.is_empty() && streamed.finish.is_none());
        streams.push((client, events, streamed));
    }
    let (leaver, events, _) = streams.remove(0);
    drop(events);
    let garbage = reqwest::Client::new()
        .post(format!("{}/v1/completions", up.url))
        .header("content-type", "application/json")
        .body("{\"model\": \u{1}")
        .send()
        .await
        .unwrap();
    assert_eq!(garbage.status(), 400);
    up.kill(&["worker", "decode-0"]);

    let ends =
        futures::future::join_all(streams.into_iter().map(|(client, mut events, mut streamed)| async move {
            while let Some(data) = events.next().await {
                streamed.add(&data);
            }
            (client, streamed)
        }))
        .await;
    let (lost, whole): (Vec<_>, Vec<_>) =
        ends.into_iter().partition(|(_, streamed)| streamed.error.is_some());
    assert!(!lost.is_empty() && !whole.is_empty(), "{} lost, {} whole", lost.len(), whole.len());
    for (client, streamed) in &whole {
        assert_eq!(streamed, &Streamed { usage: streamed.usage.clone(), ..calm[*client].clone() });
    }
    for (client, streamed) in &lost {
        let error = streamed.error.as_ref().unwrap();
        assert_eq!(error["code"], "worker_lost", "{error}");
        assert!(!streamed.done, "a broken stream does not say that it is done");
        assert!(calm[*client].text.starts_with(&streamed.text), "what came before the error is right");
    }

    let (status, next) =
        post(&up.url, "/v1/completions", &completion(&up.model, &prompt(leaver), TOKENS)).await;
    assert_eq!((status, next["choices"][0]["text"].as_str()), (200, Some(calm[leaver].text.as_str())));
    eventually("the killed worker is back", async || up.children(&["worker", "decode-0"]).len() == 1).await;
    eventually("no lease is left", async || {
        let stats = up.stats().await;
        (stats.read_leases, stats.write_leases) == (0, 0)
    })
    .await;
    assert!(up.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_outlives_each_of_its_children() {
    let up = Up::start(&["--model", "toy"], &[]);
    let ask = async || post(&up.url, "/v1/completions", &completion(&up.model, &prompt(1), 8)).await;
    let (_, calm) = ask().await;
    for child in
        [["store", "--listen"], ["worker", "prefill-0"], ["worker", "decode-0"], ["router", "--listen"]]
    {
        let killed = up.kill(&child);
        eventually("it is started again", async || up.children(&child).iter().any(|&pid| pid != killed))
            .await;
        eventually("requests are answered as before", async || {
            let url = format!("{}/v1/completions", up.url);
            let body = completion(&up.model, &prompt(1), 8);
            let Ok(response) = reqwest::Client::new().post(url).json(&body).send().await else {
                return false;
            };
            let Ok(answer) = response.json::<serde_json::Value>().await else { return false };
            answer["choices"][0]["text"] == calm["choices"][0]["text"]
        })
        .await;
        eventually("prompts are found in the store again", async || {
            let (_, answer) = ask().await;
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0) > 0
        })
        .await;
    }
    assert!(up.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn children_die_with_a_supervisor_that_is_killed() {
    let mut up = Up::start(&["--model", "toy"], &[]);
    let children = up.children(&[]);
    assert_eq!(children.len(), 4);
    up.kill_supervisor();
    eventually("no child is left", async || {
        children.iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists())
    })
    .await;
}
