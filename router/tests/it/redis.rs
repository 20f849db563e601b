//! Backends that register themselves in Redis: against a real server.

use std::{
    net::TcpListener,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kelvin_router::RouterConfig;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::harness::{TestBackend, TestRouter, until};

/// A server on loopback that keeps nothing; killed when dropped.
struct Redis {
    server: Child,
    port: u16,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A connection to the server on `port`, as soon as there is one.
async fn connect(port: u16) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).unwrap();
    until(|| async {
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        redis::cmd("PING").query_async::<String>(&mut connection).await.ok()?;
        Some(connection)
    })
    .await
}

impl Redis {
    /// `None`, and a loud word, where there is no Redis.
    async fn start() -> Option<(Self, MultiplexedConnection)> {
        let port = free();
        Some((Self::at(port)?, connect(port).await))
    }

    fn at(port: u16) -> Option<Self> {
        // Debian has the server in redis-tools too, under another name: what it does is by how it is called.
        let started = ["redis-server", "redis-check-rdb"].into_iter().find_map(|program| {
            Command::new(program)
                .arg0("redis-server")
                .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/tmp"])
                .args(["--port", &port.to_string()])
                .stdout(Stdio::null())
                .spawn()
                .ok()
        });
        let Some(server) = started else {
            eprintln!("*** SKIPPED: there is no redis-server (Debian: apt-get install redis-tools) ***");
            return None;
        };
        Some(Self { server, port })
    }
}

async fn set(connection: &mut MultiplexedConnection, key: &str, value: &str) {
    let mut set = redis::cmd("SET");
    set.arg(key).arg(value).arg("EX").arg(1000).exec_async(connection).await.unwrap();
}

fn backend(server: &TestBackend) -> String {
    json!({"url": server.url()}).to_string()
}

async fn router(port: u16, path: &str) -> TestRouter {
    TestRouter::bare(RouterConfig {
        backends_redis: Some(format!("redis://127.0.0.1:{port}{path}").parse().unwrap()),
        probe_interval: Duration::from_millis(50),
        ..RouterConfig::default()
    })
    .await
}

/// Waits until the router has just these, and all are ready.
async fn has(router: &TestRouter, servers: &[&TestBackend]) -> Value {
    let mut urls: Vec<_> = servers.iter().map(|server| server.url()).collect();
    urls.sort();
    router
        .health_until(|health| {
            let backends = health["backends"].as_array().cloned().unwrap_or_default();
            let mut there: Vec<_> =
                backends.iter().map(|backend| backend["url"].as_str().unwrap().to_owned()).collect();
            there.sort();
            there == urls && backends.iter().all(|backend| backend["state"] == "ready")
        })
        .await
}

#[tokio::test]
async fn who_registers_joins_and_who_stops_leaves() {
    let Some((server, mut redis)) = Redis::start().await else { return };
    let (one, two) = (TestBackend::start("one").await, TestBackend::start("two").await);
    set(&mut redis, "kelvin:backend:one", &backend(&one)).await;
    set(&mut redis, "blue:backend:two", &backend(&two)).await;
    set(&mut redis, "kelvin:other", "nothing of ours").await;
    redis::cmd("LPUSH").arg("kelvin:backend:list").arg("x").exec_async(&mut redis).await.unwrap();
    let router = router(server.port, "").await;
    has(&router, &[&one]).await;
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    assert!(router.chat(&body).await.text().await.unwrap().contains("one"));

    set(&mut redis, "kelvin:backend:two", &backend(&two)).await;
    set(&mut redis, "kelvin:backend:odd", r#"{"url": "nonsense"}"#).await;
    let health = has(&router, &[&one, &two]).await;
    assert_eq!(health["sources"], json!([{"source": "redis", "state": "seen", "backends": 2}]));
    assert_eq!(router.metric("kelvin_router_backends_found{source=\"redis\"}").await, Some(2.0));
    assert_eq!(router.metric("kelvin_router_backend_source_up{source=\"redis\"}").await, Some(1.0));
    let malformed = "kelvin_router_backend_source_errors_total{source=\"redis\",kind=\"malformed\"}";
    assert_eq!(router.metric(malformed).await, Some(1.0));
    // What makes no sense any more changes nothing.
    set(&mut redis, "kelvin:backend:one", "{").await;
    until(|| async { (router.metric(malformed).await == Some(2.0)).then_some(()) }).await;
    has(&router, &[&one, &two]).await;

    // Time to live over.
    redis::cmd("PEXPIRE").arg("kelvin:backend:one").arg(1).exec_async(&mut redis).await.unwrap();
    has(&router, &[&two]).await;
    for _ in 0..4 {
        assert!(router.chat(&body).await.text().await.unwrap().contains("two"));
    }
}

#[tokio::test]
async fn a_redis_that_is_away_changes_nothing() {
    let port = free();
    // It need not be there at the start.
    let router = router(port, "/3/blue").await;
    router.health_until(|health| health["sources"][0]["state"] == "away").await;
    let Some(server) = Redis::at(port) else { return };
    let mut redis = connect(port).await;
    redis::cmd("SELECT").arg(3).exec_async(&mut redis).await.unwrap();
    let one = TestBackend::start("one").await;
    set(&mut redis, "blue:backend:one", &backend(&one)).await;
    assert_eq!(has(&router, &[&one]).await["status"], "ok");

    drop((server, redis));
    let health = router.health_until(|health| health["sources"][0]["state"] == "away").await;
    assert_eq!(health["status"], "degraded");
    assert!(!health["sources"][0]["why"].as_str().unwrap().is_empty());
    assert_eq!(router.metric("kelvin_router_backend_source_up{source=\"redis\"}").await, Some(0.0));
    let unreachable = "kelvin_router_backend_source_errors_total{source=\"redis\",kind=\"unreachable\"}";
    assert!(router.metric(unreachable).await.unwrap() >= 2.0);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(router.chat(&body).await.status(), 200);

    // It starts empty: who was there registers again, and meanwhile nothing is lost.
    let _server = until(|| async { Redis::at(port) }).await;
    connect(port).await;
    let health = router.health_until(|health| health["sources"][0]["state"] == "seen").await;
    assert_eq!(health["backends"].as_array().unwrap().len(), 1);
    assert_eq!(router.chat(&body).await.status(), 200);
}
