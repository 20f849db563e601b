//! Draining: reverse order, grace, and children that will not go.

use std::time::Duration;

use kelvin_planner::{Error, State};

use super::{Fixture, PATIENCE, READY, alive, ready, shell, until};

/// Ends on SIGTERM and says so.
fn polite(name: &str) -> kelvin_planner::Child {
    shell(name, &format!("trap 'echo bye >&2; exit 0' TERM; {READY}; while :; do sleep 0.02; done"))
}

#[tokio::test]
async fn the_last_started_stops_first() {
    let fixture = Fixture::new(PATIENCE);
    let mut pids = Vec::new();
    for name in ["a", "b", "c"] {
        pids.push(ready(&fixture, polite(name)).await.0);
    }
    fixture.supervisor.drain().await;
    assert_eq!(fixture.lines(), ["c | bye", "b | bye", "a | bye"]);
    assert!(!pids.into_iter().any(alive));
    let error = fixture.supervisor.start(polite("d")).await.unwrap_err();
    assert!(matches!(error, Error::Draining(_)), "{error:?}");
}

#[tokio::test]
async fn a_stubborn_child_is_killed_after_the_grace_period() {
    let fixture = Fixture::new(Duration::from_millis(100));
    let script = format!("trap '' TERM; {READY}; while :; do sleep 0.02; done");
    let (pid, watch) = ready(&fixture, shell("a", &script)).await;
    fixture.supervisor.drain().await;
    assert_eq!(watch.borrow().state, State::Stopped);
    assert!(!alive(pid));
}

#[tokio::test]
async fn hurry_cuts_the_grace_period() {
    let fixture = Fixture::new(Duration::from_secs(3600));
    let script = format!("trap '' TERM; {READY}; while :; do sleep 0.02; done");
    let (pid, mut watch) = ready(&fixture, shell("a", &script)).await;
    let hurry = async {
        until(&mut watch, |status| status.state == State::Draining).await;
        fixture.supervisor.hurry();
    };
    tokio::join!(fixture.supervisor.drain(), hurry);
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_child_that_is_not_ready_yet_is_drained_too() {
    let fixture = Fixture::new(PATIENCE);
    let starting = fixture.supervisor.start(shell("a", "exec sleep 1000"));
    let drain = async {
        let mut watch = loop {
            match fixture.supervisor.watch("a") {
                Some(watch) => break watch,
                None => tokio::task::yield_now().await,
            }
        };
        let pid = until(&mut watch, |status| status.pid.is_some()).await.pid.unwrap();
        fixture.supervisor.drain().await;
        pid
    };
    let (started, pid) = tokio::join!(starting, drain);
    assert!(matches!(started, Err(Error::Draining(_))), "{started:?}");
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_dropped_supervisor_leaves_no_child() {
    let runtime = std::thread::spawn(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let pid = runtime.block_on(async {
            let fixture = Fixture::new(PATIENCE);
            ready(&fixture, shell("a", &format!("{READY}; exec sleep 1000"))).await.0
        });
        drop(runtime);
        pid
    });
    let pid = runtime.join().unwrap();
    // Killed but not reaped any more: gone, or a zombie.
    let dead = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.contains(") Z"),
        Err(_) => true,
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while !dead() {
        assert!(std::time::Instant::now() < deadline, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}
