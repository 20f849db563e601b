//! A task that looks for work only after something happened that may have made some.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Whether something happened since the last look. One task waits for it.
#[derive(Default)]
pub(in crate::store) struct Stirred {
    is: AtomicBool,
    wakes: Notify,
}

impl Stirred {
    /// Something happened. What it was must be there to be seen before this is called.
    pub(in crate::store) fn stir(&self) {
        // Mostly it is set already: then its line of memory stays shared.
        if !self.is.load(Ordering::Relaxed) && !self.is.swap(true, Ordering::AcqRel) {
            self.wakes.notify_one();
        }
    }

    /// Waits until something happened. What happens from here on counts for the next time.
    pub(super) async fn wait(&self) {
        while !self.is.swap(false, Ordering::AcqRel) {
            self.wakes.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_happened_once_is_waited_for_once() {
        let stirred = Stirred::default();
        assert!(stirred.wait().now_or_never().is_none(), "nothing happened");
        stirred.stir();
        stirred.stir();
        assert!(stirred.wait().now_or_never().is_some());
        assert!(stirred.wait().now_or_never().is_none());
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let stirred = Stirred::default();
        let both = futures::future::join(stirred.wait(), async {
            tokio::task::yield_now().await;
            stirred.stir();
        });
        both.await;
    }
}
