//! The built-in page of a cluster, as HTTP: what it shows, and who may change something. How it looks is tested in a
//! browser (`make test-ui`).

use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{Cluster, http, until};
use super::run;

const TOKEN: &str = "operator";

struct Page(String);

impl Page {
    fn of(cluster: &Cluster, service: &str) -> Self {
        Self(cluster.ready[format!("{service}_admin")].as_str().unwrap().to_owned())
    }

    async fn ask(&self, path: &str) -> reqwest::Response {
        http().build().unwrap().get(format!("{}{path}", self.0)).send().await.unwrap()
    }

    async fn api(&self, path: &str) -> Value {
        self.ask(&format!("/ui/api/{path}")).await.error_for_status().unwrap().json().await.unwrap()
    }

    /// Status and answer of an action, with these headers.
    async fn act(&self, headers: &[(&str, &str)], action: &Value) -> (u16, Value) {
        let mut request = http().build().unwrap().post(format!("{}/ui/api/act", self.0)).json(action);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }
}

#[tokio::test]
async fn it_shows_what_the_cluster_did() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[], &[]);
    let prompt = "Where do the swallows go? ".repeat(20);
    let (store, router) = (Page::of(&cluster, "store"), Page::of(&cluster, "router"));
    for page in [&store, &router] {
        let index = page.ask("/ui").await;
        let policy = index.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(index.text().await.unwrap().contains("./app.js"));
        for (file, kind) in [
            ("app.js", "text/javascript"),
            ("style.css", "text/css"),
            ("vendor/uPlot.esm.js", "text/javascript"),
        ] {
            let answer = page.ask(&format!("/ui/{file}")).await;
            let found = answer.headers()["content-type"].to_str().unwrap();
            assert!(answer.status().is_success() && found.starts_with(kind), "{file}: {found}");
        }
        assert_eq!(page.ask("/ui/../Cargo.toml").await.status(), 404);
        for path in ["/metrics", "/health"] {
            assert!(page.ask(path).await.status().is_success(), "{path}");
            // A name that was pointed at this machine by somebody else.
            let there =
                http().build().unwrap().get(format!("{}{path}", page.0)).header("host", "elsewhere.example");
            assert_eq!(there.send().await.unwrap().status(), 403, "{path}");
        }
    }

    // The first answers may come before the router has reached the store.
    until("the store was asked, and had something", async || {
        cluster.chat(&prompt).await.unwrap();
        let now = store.api("now").await;
        now["store"]["namespaces"][0]["hit_tokens"].as_u64().is_some_and(|tokens| tokens > 0)
    })
    .await;
    cluster.chat(&"Do the swallows come back? ".repeat(20)).await.unwrap();
    let now = store.api("now").await;
    let namespace = &now["store"]["namespaces"][0];
    assert!(namespace["requested_tokens"].as_u64() > namespace["hit_tokens"].as_u64(), "{now}");
    assert_eq!((&now["kind"], &now["may_change"]), (&json!("store"), &json!(false)));
    // The last blocks are stored after the answer.
    until("the tree has the blocks of Stats", async || {
        let (now, tree) = (store.api("now").await, store.api("tree").await);
        let own = |node: &Value| node["own"]["dram"].as_u64().unwrap();
        let blocks: u64 = tree["nodes"].as_array().unwrap().iter().map(own).sum();
        now["store"]["namespaces"][0]["blocks"].as_u64() == Some(blocks)
    })
    .await;
    let tree = store.api("tree").await;
    let root = tree["nodes"][0]["first"].as_str().unwrap();
    assert_eq!(store.api(&format!("tree?from={root}")).await["nodes"][0]["first"], root);

    // A sample comes each second, and with it both have the same counts.
    for (page, name) in [(&store, "hit.dram"), (&router, "router.cached"), (&router, "hit.dram")] {
        until("the history has the hits", async || {
            let history = page.api("history").await;
            let values = history["series"][name]["values"].as_array().unwrap();
            values.last().and_then(Value::as_u64).is_some_and(|hits| hits > 0)
        })
        .await;
    }

    let requests = router.api("requests").await;
    let recent = requests["recent"].as_array().unwrap();
    assert!(recent.iter().any(|one| one["cached_tokens"].as_u64().unwrap() > 0), "{requests}");
    let newest = &recent[0];
    let unique = newest["unique"].as_str().unwrap();
    for id in [unique.to_owned(), format!("chatcmpl-{unique}")] {
        assert_eq!(router.api(&format!("requests/{id}")).await["prompt_tokens"], newest["prompt_tokens"]);
    }
    assert_eq!(router.ask("/ui/api/requests/nobody").await.status(), 404);
    let calls = store.api("requests").await;
    let missing = |call: &&Value| call["first_missing_hash"].is_string();
    let call = calls["worst"].as_array().unwrap().iter().find(missing).unwrap()["id"].as_str().unwrap();
    // What was missing then is stored by now, by the request itself; why it was missing is told all the same.
    for (page, id) in [(&router, unique), (&store, call)] {
        until("it is explained", async || {
            let explain = page.api(&format!("requests/{id}")).await["explain"].clone();
            assert_eq!(explain["reason"], "never_stored", "{explain}");
            explain["words"].as_str().unwrap().ends_with("It is stored now, in dram.")
        })
        .await;
    }
    let (output, text, stderr) = run(&["explain", unique, "--router", &router.0]);
    assert!(output.status.success(), "{stderr}");
    for words in ["answered with 200", "generates", "never stored", "It is stored now"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    let (output, _, stderr) = run(&["explain", call, "--router", &store.0]);
    assert!(!output.status.success() && stderr.contains("is the admin listener of a store"), "{stderr}");
    let (output, _, stderr) = run(&["explain", unique, "--router", &cluster.url("")]);
    assert!(!output.status.success() && stderr.contains("--admin-listen"), "{stderr}");
    for page in [&store, &router] {
        for path in ["now", "requests", "mrc", "history"] {
            assert!(!page.api(path).await.to_string().contains("swallows"), "{path}");
        }
    }
    cluster.signal(Signal::TERM);
    assert!(cluster.wait().0.success());
}

#[tokio::test]
async fn only_an_operator_changes_something() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[], &[("KELVIN_ADMIN_TOKEN", TOKEN)]);
    cluster.chat(&"Who keeps the lighthouse? ".repeat(20)).await.unwrap();
    let page = Page::of(&cluster, "store");
    let tree = page.api("tree").await;
    let (namespace, hash) = (&tree["namespace"], &tree["nodes"][0]["first"]);
    let action =
        |verb: &str| json!({"action": verb, "namespace": namespace, "hash": hash, "name": "lighthouse"});
    let bearer = ("authorization", "Bearer operator");
    let refused: [(&[(&str, &str)], u16); 5] = [
        (&[], 401),
        (&[("authorization", "Bearer other")], 401),
        (&[bearer, ("origin", "http://elsewhere.example")], 403),
        (&[bearer, ("host", "elsewhere.example")], 403),
        (&[("authorization", "operator")], 401),
    ];
    for (headers, status) in refused {
        let (found, answer) = page.act(headers, &action("name")).await;
        assert_eq!(found, status, "{headers:?}: {answer}");
        assert!(answer["error"].is_string());
    }
    assert_eq!(page.ask("/ui/api/act").await.status(), 405);
    assert_eq!(page.act(&[bearer], &action("name")).await.0, 200);
    assert_eq!(page.api("tree").await["nodes"][0]["name"], "lighthouse");
    let (_, pinned) = page.act(&[bearer, ("origin", &page.0)], &action("pin")).await;
    assert!(pinned["blocks"].as_u64().unwrap() > 0, "{pinned}");
    assert_eq!(
        page.act(&[bearer], &action("evict")).await.1["kept_blocks"].as_u64(),
        pinned["blocks"].as_u64()
    );
    assert_eq!(page.act(&[bearer], &action("unpin")).await.1["pins"], 1);
    assert!(page.act(&[bearer], &action("evict")).await.1["blocks"].as_u64().unwrap() > 0);
    for (wrong, status) in [
        (json!({"action": "pin", "namespace": namespace, "hash": "0f"}), 400),
        (json!({"action": "pin", "namespace": namespace, "hash": "0f".repeat(16)}), 404),
        (json!({"action": "pin", "namespace": "7", "hash": hash}), 404),
        (json!({"action": "drop", "namespace": namespace, "hash": hash}), 400),
        (json!("pin"), 400),
    ] {
        assert_eq!(page.act(&[bearer], &wrong).await.0, status, "{wrong}");
    }
    assert_eq!(Page::of(&cluster, "router").act(&[bearer], &action("pin")).await.0, 403);
    cluster.signal(Signal::TERM);
    assert!(cluster.wait().0.success());
}
