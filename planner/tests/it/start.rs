//! Readiness: what counts as started, and what a failed start leaves behind.

use std::time::Duration;

use kelvin_planner::{Cause, Error};

use super::{Fixture, PATIENCE, READY, alive, shell};

#[tokio::test]
async fn a_child_is_started_when_it_says_so() {
    let fixture = Fixture::new(PATIENCE);
    let script = format!("echo loading; echo careful >&2; {READY}; echo later; exec sleep 1000");
    let ready = fixture.supervisor.start(shell("a", &script)).await.unwrap();
    assert_eq!(ready.get("service"), Some("test"));
    assert_eq!(ready.get("listen"), Some("here"));
    while fixture.lines().len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fixture.supervisor.drain().await;
    let mut lines = fixture.lines();
    lines.sort();
    assert_eq!(lines, ["a | careful", "a | later", "a | loading"]);
}

#[tokio::test]
async fn a_first_start_that_fails_is_final() {
    let fixture = Fixture::new(PATIENCE);
    let error = fixture.supervisor.start(shell("a", "echo no such model >&2; exit 3")).await.unwrap_err();
    assert!(matches!(&error, Error::NotStarted { cause: Cause::Exited(3), .. }), "{error:?}");
    assert_eq!(error.to_string(), "a did not start: exited with code 3");
    assert_eq!(fixture.lines(), ["a | no such model"]);
}

#[tokio::test]
async fn a_program_that_is_not_there() {
    let fixture = Fixture::new(PATIENCE);
    let mut child = shell("a", "");
    child.program = "/no/such/program".into();
    let error = fixture.supervisor.start(child).await.unwrap_err();
    assert!(error.to_string().starts_with("a did not start: cannot be run: No such file"), "{error}");
}

#[tokio::test]
async fn a_silent_child_is_killed() {
    let fixture = Fixture::new(PATIENCE);
    let mut child = shell("a", "echo $$ >&2; exec 1>&-; trap '' TERM; while :; do sleep 0.1; done");
    child.ready_timeout = Duration::from_millis(300);
    let error = fixture.supervisor.start(child).await.unwrap_err();
    assert_eq!(error.to_string(), "a did not start: not ready within 300ms");
    let lines = fixture.lines();
    if let Some(pid) = lines.first().and_then(|line| line.strip_prefix("a | ")) {
        assert!(!alive(pid.parse().unwrap()));
    }
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let fixture = Fixture::new(PATIENCE);
    let script = format!("{READY}; exec sleep 1000");
    fixture.supervisor.start(shell("a", &script)).await.unwrap();
    let error = fixture.supervisor.start(shell("a", &script)).await.unwrap_err();
    assert!(matches!(error, Error::NameTaken(_)), "{error:?}");
    fixture.supervisor.drain().await;
}
