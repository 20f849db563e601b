//! The local actuator with real, small child processes.

mod drain;
mod restart;
mod start;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kelvin_planner::{Backoff, Child, State, Status, Supervisor, SupervisorOptions};
use tokio::sync::watch;

/// Prints a ready line; the head of most children here.
const READY: &str = r#"echo '{"event":"ready","service":"test","listen":"here"}'"#;

/// Longest wait for something that does happen; only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);

/// A supervisor with short pauses and what its children wrote.
struct Fixture {
    supervisor: Supervisor,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Fixture {
    fn new(grace: Duration) -> Fixture {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let options = SupervisorOptions {
            backoff: Backoff {
                first: Duration::from_millis(10),
                max: Duration::from_millis(40),
                stable: Duration::from_secs(3600),
            },
            grace,
            output: Arc::new(move |line| sink.lock().unwrap().push(line.to_owned())),
        };
        Fixture { supervisor: Supervisor::new(options).unwrap(), lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

fn shell(name: &str, script: &str) -> Child {
    let mut child = Child::new(name, "/bin/sh");
    child.args = vec!["-c".into(), script.into()];
    child.ready_timeout = PATIENCE;
    child
}

/// Waits until the child's status fits.
async fn until(watch: &mut watch::Receiver<Status>, fits: impl FnMut(&Status) -> bool) -> Status {
    tokio::time::timeout(PATIENCE, watch.wait_for(fits))
        .await
        .expect("the status never came")
        .unwrap()
        .clone()
}

fn alive(pid: u32) -> bool {
    // A zombie still has a directory; only a reaped process has none.
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

async fn ready(fixture: &Fixture, child: Child) -> (u32, watch::Receiver<Status>) {
    let name = child.name.clone();
    fixture.supervisor.start(child).await.unwrap();
    let mut watch = fixture.supervisor.watch(&name).unwrap();
    let status = until(&mut watch, |status| status.state == State::Ready).await;
    (status.pid.unwrap(), watch)
}
