//! The one thread that starts processes.
//!
//! The kernel's parent-death signal fires when the *thread* that made a child ends, not its process. A
//! runtime's thread may end at any time (its blocking threads do when idle), which would kill healthy
//! children; so they are all made by a thread that lives as long as the supervisor and its keepers.

use std::io;
use std::thread;

use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Starts waiting in the queue; a keeper has at most one, so this is only a bound.
const QUEUE: usize = 16;

struct Request {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Hands commands to the thread; the thread ends with the last clone.
#[derive(Clone)]
pub(super) struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    pub(super) fn new() -> io::Result<Spawner> {
        let (requests, mut queue) = mpsc::channel::<Request>(QUEUE);
        let runtime = Handle::current();
        thread::Builder::new().name("spawner".into()).spawn(move || {
            while let Some(mut request) = queue.blocking_recv() {
                let _entered = runtime.enter();
                // A caller that went away drops the child, which kills it (`kill_on_drop`).
                let _ = request.reply.send(request.command.spawn());
            }
        })?;
        Ok(Spawner { requests })
    }

    pub(super) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts processes is gone");
        self.requests.send(Request { command, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
