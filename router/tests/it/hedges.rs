//! A second backend for a stream that does not begin, and the backend that a session had.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{DONE, Do, TestBackend, TestRouter, event, until};

fn streamed(text: &str) -> Value {
    json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": text}]})
}

async fn hedges(router: &TestRouter, result: &str) -> Option<f64> {
    router.metric(&format!("kelvin_router_backend_hedges_total{{result=\"{result}\"}}")).await
}

#[tokio::test]
async fn a_stream_that_does_not_begin_is_asked_for_elsewhere_and_the_first_is_cancelled() {
    let (silent, good) = (TestBackend::start("silent").await, TestBackend::start("good").await);
    silent.always(Do::Hang);
    good.always(Do::Stream(vec![event("good"), DONE.into()]));
    let router = TestRouter::before(&[&silent, &good], |config| {
        config.hedge_after = Some(Duration::from_millis(50));
    })
    .await;
    until(|| async {
        let text = router.chat(&streamed("hi")).await.text().await.unwrap();
        assert_eq!(text, [event("good"), DONE.into()].concat());
        (!silent.requests().is_empty()).then_some(())
    })
    .await;
    until(|| async { (silent.gone() == 1).then_some(()) }).await;
    assert_eq!(hedges(&router, "asked").await, Some(1.0));
    assert_eq!(hedges(&router, "won").await, Some(1.0));
    assert_eq!(router.metric("kelvin_router_retries_total").await, Some(0.0), "it is no failure");
    router
        .health_until(|health| health["backends"].as_array().unwrap().iter().all(|b| b["in_flight"] == 0))
        .await;
}

#[tokio::test]
async fn a_hedge_that_fails_leaves_the_first_alone() {
    let (slow, bad) = (TestBackend::start("slow").await.takes(400), TestBackend::start("bad").await);
    slow.always(Do::Stream(vec![event("slow"), DONE.into()]));
    bad.always(Do::Answer(500, "{}".into()));
    let router = TestRouter::before(&[&slow, &bad], |config| {
        config.hedge_after = Some(Duration::from_millis(50));
    })
    .await;
    until(|| async {
        let text = router.chat(&streamed("hi")).await.text().await.unwrap();
        assert_eq!(text, [event("slow"), DONE.into()].concat());
        hedges(&router, "lost").await
    })
    .await;
}

#[tokio::test]
async fn without_the_flag_and_for_whole_answers_nobody_else_is_asked() {
    let (one, two) = (TestBackend::start("one").await.takes(300), TestBackend::start("two").await.takes(300));
    let router = TestRouter::before(&[&one, &two], |config| {
        config.hedge_after = Some(Duration::from_millis(20));
    })
    .await;
    let whole = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(router.chat(&whole).await.status(), 200);
    assert_eq!(hedges(&router, "asked").await, None);
    let off = TestRouter::before(&[&one, &two], |_| {}).await;
    for backend in [&one, &two] {
        backend.always(Do::Stream(vec![event("a"), DONE.into()]));
    }
    assert_eq!(off.chat(&streamed("hi")).await.status(), 200);
    assert_eq!(one.requests().len() + two.requests().len(), 2, "one for each of the two requests");
}

#[tokio::test]
async fn a_second_try_of_a_sessions_request_is_no_second_request() {
    let (one, two) = (TestBackend::start("one").await.takes(20), TestBackend::start("two").await.takes(20));
    let router = TestRouter::before(&[&one, &two], |_| {}).await;
    let body = json!({"model": "m", "user": "u", "messages": [{"role": "user", "content": "hi"}]});
    let first = router.chat(&body).await.text().await.unwrap();
    let (fails, other) = if first.contains("one") { (one, "two") } else { (two, "one") };
    fails.always(Do::Answer(500, "{}".into()));
    assert!(router.chat(&body).await.text().await.unwrap().contains(other));
    assert_eq!(fails.requests().len(), 2);
    let affinity = async |result: &str| {
        router.metric(&format!("kelvin_router_backend_affinity_total{{result=\"{result}\"}}")).await
    };
    assert_eq!(
        (affinity("new").await, affinity("kept").await, affinity("left").await),
        (Some(1.0), Some(1.0), None)
    );
}

#[tokio::test]
async fn a_session_stays_where_it_was_while_that_costs_little_more() {
    let (one, two) = (TestBackend::start("one").await.takes(20), TestBackend::start("two").await.takes(20));
    let router = TestRouter::before(&[&one, &two], |_| {}).await;
    let ask = async |field: &str, session: &str, text: &str| {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
        body[field] = session.into();
        let answer = router.chat(&body).await.text().await.unwrap();
        if answer.contains("one") { "one" } else { "two" }
    };
    for field in ["session_id", "prompt_cache_key", "user"] {
        for session in ["a", "b", "c", "d"] {
            let session = &format!("{field} {session}");
            let first = ask(field, session, "nothing that others have").await;
            for turn in 0..4 {
                // Too short to be known by its text.
                assert_eq!(ask(field, session, &format!("turn {turn}")).await, first, "{field} {session}");
            }
        }
    }
    let affinity = async |result: &str| {
        router.metric(&format!("kelvin_router_backend_affinity_total{{result=\"{result}\"}}")).await
    };
    assert_eq!((affinity("new").await, affinity("kept").await), (Some(12.0), Some(48.0)));
    assert_eq!(router.metric("kelvin_router_backend_sessions").await, Some(12.0));
    // One that is gone is no reason to wait.
    let first = ask("user", "user a", "again").await;
    let mut last = json!({"model": "m", "messages": [{"role": "user", "content": "bye"}], "user": "user b"});
    last["session_end"] = true.into();
    assert_eq!(router.chat(&last).await.status(), 200);
    assert_eq!(router.metric("kelvin_router_backend_sessions").await, Some(11.0));
    let sent = [one.requests(), two.requests()].concat();
    assert!(sent.iter().all(|(_, body)| !body.contains("session_")), "the router's hints stay there");
    let (gone, stays) = if first == "one" { (one, "two") } else { (two, "one") };
    drop(gone);
    assert_eq!(ask("user", "user a", "again").await, stays);
    assert_eq!(ask("user", "user a", "again").await, stays);
}
