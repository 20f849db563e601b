//! A prompt that one backend computes and another decodes behind, as vLLM's pairs do it.

use std::time::Duration;

use kelvin_router::{BackendRole, BackendSpec, PrefillPolicy, RouterConfig};
use serde_json::{Value, json};

use crate::harness::{DONE, Do, TestBackend, TestRouter, completion, event};

fn spec(backend: &TestBackend, role: BackendRole) -> BackendSpec {
    BackendSpec { role, ..BackendSpec::new(backend.url()) }
}

async fn before(
    prefill: &TestBackend,
    decode: &TestBackend,
    change: impl FnOnce(&mut RouterConfig),
) -> TestRouter {
    TestRouter::before(&[], |config| {
        config.backends = vec![spec(prefill, BackendRole::Prefill), spec(decode, BackendRole::Decode)];
        change(config);
    })
    .await
}

/// What a prefill backend says of where the KV is.
fn parameters() -> Value {
    json!({"do_remote_decode": false, "do_remote_prefill": true, "remote_engine_id": "e", "remote_block_ids": [[1, 2, 3]],
        "remote_host": "10.0.0.1", "remote_port": 5600})
}

fn prefilled() -> Do {
    let mut answer: Value = serde_json::from_str(&completion("x")).unwrap();
    answer["kv_transfer_params"] = parameters();
    Do::Answer(200, answer.to_string())
}

fn body(tokens: usize) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "word".repeat(tokens)}], "max_tokens": 20,
        "temperature": 0.25})
}

fn sent(backend: &TestBackend) -> Vec<Value> {
    backend.requests().iter().map(|(_, body)| serde_json::from_str(body).unwrap()).collect()
}

#[tokio::test]
async fn a_long_prompt_is_computed_elsewhere_and_decoded_with_what_that_says() {
    let (prefill, decode) =
        (TestBackend::start("p").await.takes(20), TestBackend::start("d").await.takes(20));
    prefill.always(prefilled());
    let router = before(&prefill, &decode, |_| {}).await;
    let mut long = body(3000);
    long["stream"] = true.into();
    long["stream_options"] = json!({"include_usage": true});
    decode.then([Do::Stream(vec![event("d"), DONE.into()])]);
    let text = router.chat(&long).await.text().await.unwrap();
    assert_eq!(text, [event("d"), DONE.into()].concat());
    let mut expected = body(3000);
    expected["stream"] = false.into();
    expected["max_tokens"] = 1.into();
    expected["kv_transfer_params"] = json!({"do_remote_decode": true, "do_remote_prefill": false,
        "remote_engine_id": null, "remote_block_ids": null, "remote_host": null, "remote_port": null});
    assert_eq!(sent(&prefill), [expected]);
    let mut expected = long.clone();
    expected["kv_transfer_params"] = parameters();
    assert_eq!(sent(&decode), [expected]);
    assert_eq!(router.metric("kelvin_router_backend_prefills_total{result=\"done\"}").await, Some(1.0));

    // A short one is not worth the way.
    assert!(router.chat(&body(20)).await.text().await.unwrap().contains("\"d\""));
    assert_eq!((sent(&prefill).len(), sent(&decode).len()), (1, 2));
    assert_eq!(sent(&decode)[1], body(20));
    router
        .health_until(|health| {
            let backends = health["backends"].as_array().unwrap();
            backends.iter().all(|backend| backend["in_flight"] == 0 && backend["queued_tokens"] == 0)
        })
        .await;
}

#[tokio::test]
async fn a_prefill_that_fails_costs_nothing_but_its_time() {
    let (prefill, decode) = (TestBackend::start("p").await, TestBackend::start("d").await);
    let router = before(&prefill, &decode, |config| {
        config.prefill = PrefillPolicy::Remote;
        config.first_token_timeout = Duration::from_millis(500);
    })
    .await;
    let raw = |text: &str| Do::Raw(text.as_bytes().to_vec());
    let failures = [Do::Answer(500, "{}".into()), raw("nonsense\r\n\r\n"), Do::Answer(400, "{}".into())];
    for (at, act) in (1..).zip(failures) {
        prefill.then([act.clone()]);
        assert_eq!(router.chat(&body(300)).await.status(), 200, "{act:?}");
        assert_eq!(sent(&decode).last().unwrap(), &body(300), "as it came");
        let failed = router.metric("kelvin_router_backend_prefills_total{result=\"failed\"}").await;
        assert_eq!(failed, Some(f64::from(at)), "{act:?}");
    }
    prefill.then([Do::Answer(200, completion("x")), Do::Hang]);
    assert_eq!(router.chat(&body(300)).await.status(), 200);
    let without = "kelvin_router_backend_prefills_total{result=\"without_parameters\"}";
    assert_eq!(router.metric(without).await, Some(1.0));
    assert_eq!(router.chat(&body(300)).await.status(), 200, "it hangs");
    assert_eq!(sent(&decode).last().unwrap(), &body(300));
    drop(prefill);
    router.health_until(|health| health["backends"].to_string().contains("lost")).await;
    assert_eq!(router.chat(&body(300)).await.status(), 200, "it is gone");
}

#[tokio::test]
async fn several_answers_or_prompts_embeddings_and_a_policy_of_local_keep_the_prompt_where_it_is_decoded() {
    let (prefill, decode) = (TestBackend::start("p").await, TestBackend::start("d").await);
    prefill.always(prefilled());
    let router = before(&prefill, &decode, |config| config.prefill = PrefillPolicy::Remote).await;
    let mut several = body(3000);
    several["n"] = 2.into();
    assert_eq!(router.chat(&several).await.status(), 200);
    assert_eq!((sent(&prefill).len(), sent(&decode)), (0, vec![several]));
    let text = json!({"model": "m", "prompt": ["word".repeat(3000), "word".repeat(3000)], "max_tokens": 20});
    assert_eq!(router.post("/v1/completions", &text).await.status(), 200);
    let embedded = json!({"model": "m", "input": "word".repeat(3000)});
    assert_eq!(router.post("/v1/embeddings", &embedded).await.status(), 200);
    assert_eq!((sent(&prefill).len(), &sent(&decode)[1..]), (0, &[text, embedded][..]));
    let local = before(&prefill, &decode, |config| config.prefill = PrefillPolicy::Local).await;
    assert_eq!(local.chat(&body(3000)).await.status(), 200);
    assert_eq!(sent(&prefill).len(), 0);
}
