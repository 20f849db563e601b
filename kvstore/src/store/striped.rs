//! What many threads count, without taking the cache line from each other.
//!
//! A counter that two threads write moves between their cores with each addition, and a call has a dozen of them. So
//! there are several of each, threads write different ones, and who reads adds them up.

use std::{
    cell::Cell,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use crossbeam::utils::CachePadded;

/// However many cores there are: histograms take 20 KiB each.
const STRIPES_MAX: usize = 16;

/// A power of two, twice the cores: threads are numbered as they come, and two busy ones should not meet.
static STRIPES: LazyLock<usize> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (2 * cores).next_power_of_two().min(STRIPES_MAX)
});

thread_local! {
    /// The thread's number, once it has counted something.
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    THREAD.get().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        THREAD.set(Some(number));
        number
    })
}

/// As many of something as there are stripes.
#[derive(Debug)]
pub(crate) struct Striped<T>(Box<[CachePadded<T>]>);

impl<T: Default> Default for Striped<T> {
    fn default() -> Self {
        Self((0..*STRIPES).map(|_| CachePadded::default()).collect())
    }
}

impl<T> Striped<T> {
    /// The one that this thread writes. Others may too.
    #[inline]
    pub(crate) fn mine(&self) -> &T {
        &self.0[thread() & (self.0.len() - 1)]
    }

    /// All of them, to add up.
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|stripe| &**stripe)
    }

    pub(crate) fn sum(&self, read: impl Fn(&T) -> u64) -> u64 {
        self.all().map(read).sum()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::counters::Counter;

    #[test]
    fn threads_write_different_stripes_and_nothing_is_lost() {
        let striped = Striped::<Counter>::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES_MAX {
                scope.spawn(|| (0..1000).for_each(|_| striped.mine().add(1)));
            }
        });
        assert_eq!(striped.sum(Counter::get), 2000 * STRIPES_MAX as u64);
        // Threads of other tests take numbers meanwhile.
        let written = striped.all().filter(|stripe| stripe.get() > 0).count();
        assert!(written > 1, "threads are dealt out in turn");
        assert_eq!(striped.memory_bytes(), *STRIPES * size_of::<CachePadded<Counter>>());
    }
}
