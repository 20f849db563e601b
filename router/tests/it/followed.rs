//! Stores that backends' engines load from, followed by their block events: a real store beside the router.

use kelvin_router::{BackendSpec, ModelSource};
use serde_json::{Value, json};

use crate::{
    harness::{TestBackend, TestRouter},
    store::{ANY, TestStore},
};

fn spec(backend: &TestBackend, store: Option<&TestStore>) -> BackendSpec {
    BackendSpec { store: store.map(TestStore::endpoint), ..BackendSpec::new(backend.url()) }
}

async fn router(specs: Vec<BackendSpec>) -> TestRouter {
    TestRouter::before(&[], |config| {
        config.backends = specs;
        config.model = Some(ModelSource::Toy);
    })
    .await
}

async fn knows(router: &TestRouter, known: &str, blocks: u64) -> Value {
    router
        .health_until(|health| {
            health["stores"][0]["known"] == known && health["stores"][0]["blocks"] == blocks
        })
        .await
}

fn prompt(number: usize) -> String {
    // Its end is of no whole block.
    format!("{number} is what this long prompt begins with, and it goes on and on. ").repeat(15)
}

#[tokio::test]
async fn a_prompt_that_a_store_has_goes_where_it_can_be_loaded() {
    let store = TestStore::start(ANY).await;
    let (one, two) = (TestBackend::start("one").await.takes(20), TestBackend::start("two").await.takes(20));
    store.fill_for("other", &prompt(100), 8).await;
    let before = store.fill_for("m", &prompt(0), 30).await;
    let router = router(vec![spec(&one, None), spec(&two, Some(&store))]).await;
    let health = knows(&router, "exact", 30).await;
    assert_eq!((&health["status"], &health["stores"][0]["namespaces"]), (&json!("ok"), &json!(1)));
    let asked = async |number: usize| {
        let body = json!({"model": "m", "prompt": prompt(number)});
        let text = router.post("/v1/completions", &body).await.text().await.unwrap();
        if text.contains("two") { "two" } else { "one" }
    };
    assert_eq!(asked(0).await, "two", "the snapshot");
    for number in 1..6 {
        store.fill_for("m", &prompt(number), 30).await;
        // A prefix that two have in common would be one block fewer.
        knows(&router, "exact", 30 * (number as u64 + 1)).await;
        assert_eq!(asked(number).await, "two", "what came since: {number}");
    }
    assert_eq!(router.metric("kelvin_router_stores{mode=\"exact\"}").await, Some(1.0));
    assert_eq!(router.metric("kelvin_router_store_blocks").await, Some(180.0));
    assert!(router.metric("kelvin_router_store_memory_bytes").await.unwrap() > 0.0);
    let stored = "kelvin_router_feed_events_total{kind=\"store_stored\"}";
    assert_eq!(router.metric(stored).await, Some(180.0));

    // Away: routing goes on and expects nothing of it. Back, empty: it is another start.
    drop(before);
    let listen = store.stop().await;
    let health = router.health_until(|health| health["stores"][0]["known"] == "fallback").await;
    assert!(!health["stores"][0]["why"].as_str().unwrap().is_empty());
    // Short: these backends take the same time for any prompt, so that a long one would teach the router that
    // computing is as quick as loading.
    let body = json!({"model": "m", "prompt": "short"});
    assert_eq!(router.post("/v1/completions", &body).await.status(), 200);
    let again = TestStore::start(listen).await;
    again.fill_for("m", &prompt(7), 30).await;
    knows(&router, "exact", 30).await;
    assert_eq!(asked(7).await, "two");
    again.stop().await;
}
