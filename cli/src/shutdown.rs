//! Ctrl-C and SIGTERM: the first one drains, the second one does not wait.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code after a second signal: 128 + SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// A signal so soon after the first one is the same wish: `timeout`, for one, signals the process and then its
/// whole group. Nobody presses a key twice as fast.
const SAME_WISH: Duration = Duration::from_millis(100);

/// Two requests to end, told apart by their haste.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown {
    /// The first signal: finish what is under way.
    pub(crate) drain: CancellationToken,
    /// The second signal: leave at once.
    pub(crate) now: CancellationToken,
}

impl Shutdown {
    /// Listens from now on.
    pub(crate) fn listen() -> io::Result<Shutdown> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = Shutdown { drain: CancellationToken::new(), now: CancellationToken::new() };
        let tokens = shutdown.clone();
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            next().await;
            tokens.drain.cancel();
            let mut first = true;
            while first {
                let since = tokio::time::Instant::now();
                next().await;
                first = since.elapsed() < SAME_WISH;
            }
            tokens.now.cancel();
        });
        Ok(shutdown)
    }

    /// Listens, and ends this process by itself at the second signal.
    pub(crate) fn listen_and_exit() -> io::Result<CancellationToken> {
        let Shutdown { drain, now } = Shutdown::listen()?;
        tokio::spawn(async move {
            now.cancelled().await;
            std::process::exit(INTERRUPTED);
        });
        Ok(drain)
    }
}
