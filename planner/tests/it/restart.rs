//! Restarts: after an exit, a signal and failed probes, with growing pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;
use kelvin_planner::{Cause, Probe, State};

use super::{Fixture, PATIENCE, READY, alive, ready, shell, until};

#[tokio::test]
async fn an_exit_leads_to_a_restart() {
    let fixture = Fixture::new(PATIENCE);
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script = format!("{READY}; while ! [ -e {} ]; do sleep 0.02; done; exit 7", go.display());
    let (pid, mut watch) = ready(&fixture, shell("a", &script)).await;
    std::fs::write(&go, "").unwrap();
    let status = until(&mut watch, |status| status.restarts >= 3).await;
    assert!(matches!(status.cause, Some(Cause::Exited(7))), "{status:?}");
    assert!(!alive(pid));
    fixture.supervisor.drain().await;
    assert_eq!(watch.borrow().state, State::Stopped);
}

#[tokio::test]
async fn a_kill_leads_to_a_restart() {
    let fixture = Fixture::new(PATIENCE);
    let (pid, mut watch) = ready(&fixture, shell("a", &format!("{READY}; exec sleep 1000"))).await;
    let raw = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    let status = until(&mut watch, |status| status.state == State::Ready && status.restarts == 1).await;
    assert_eq!(status.cause.unwrap().to_string(), "killed by signal 9 (SIGKILL)");
    assert_ne!(status.pid, Some(pid));
    fixture.supervisor.drain().await;
}

#[tokio::test]
async fn a_restart_that_fails_is_tried_again() {
    let fixture = Fixture::new(PATIENCE);
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    // Ready at the first and the fourth start; the two between fail before they are ready.
    let script = format!(
        "echo x >> {count}; case $(wc -l < {count}) in 1) {READY}; exit 1;; 2|3) exit 2;; *) {READY}; exec sleep 1000;; esac",
        count = count.display()
    );
    fixture.supervisor.start(shell("a", &script)).await.unwrap();
    let mut watch = fixture.supervisor.watch("a").unwrap();
    let status = until(&mut watch, |status| status.state == State::Ready && status.restarts == 3).await;
    assert!(matches!(status.cause, Some(Cause::Exited(2))), "{status:?}");
    fixture.supervisor.drain().await;
}

#[tokio::test]
async fn probes_that_fail_in_a_row_lead_to_a_restart() {
    let fixture = Fixture::new(PATIENCE);
    let (healthy, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let mut child = shell("a", &format!("{READY}; trap '' TERM; exec sleep 1000"));
    let (answer, count) = (healthy.clone(), asked.clone());
    child.probe = Some(Probe {
        interval: Duration::from_millis(5),
        timeout: PATIENCE,
        failures_max: 3,
        ask: Arc::new(move || {
            // Every third answer is good, so that two failures in a row stay without consequence.
            let turn = count.fetch_add(1, Ordering::SeqCst);
            let good = answer.load(Ordering::SeqCst) && turn % 3 == 0;
            async move { if good { Ok(()) } else { Err("wedged".into()) } }.boxed()
        }),
    });
    let (pid, mut watch) = ready(&fixture, child).await;
    while asked.load(Ordering::SeqCst) < 12 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(watch.borrow().restarts, 0);
    healthy.store(false, Ordering::SeqCst);
    let status = until(&mut watch, |status| status.cause.is_some()).await;
    assert_eq!(status.cause.unwrap().to_string(), "3 probes failed in a row, the last: wedged");
    assert!(!alive(pid));
    fixture.supervisor.drain().await;
}

#[tokio::test]
async fn a_probe_without_an_answer_has_failed() {
    let fixture = Fixture::new(PATIENCE);
    let mut child = shell("a", &format!("{READY}; exec sleep 1000"));
    child.probe = Some(Probe {
        interval: Duration::from_millis(1),
        timeout: Duration::from_millis(20),
        failures_max: 1,
        ask: Arc::new(|| std::future::pending().boxed()),
    });
    let (_, mut watch) = ready(&fixture, child).await;
    let status = until(&mut watch, |status| status.cause.is_some()).await;
    assert_eq!(
        status.cause.unwrap().to_string(),
        "1 probes failed in a row, the last: no answer within 20ms"
    );
    fixture.supervisor.drain().await;
}
