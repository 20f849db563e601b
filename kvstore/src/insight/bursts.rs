//! Bursts: how much work it may take to watch what is asked for.
//!
//! # Overview
//! A sample of fixed size bounds memory, but not work: where few blocks are asked for over and over, all of them are
//! in it. So watchers say what they did, in nanoseconds of a processor as they estimate it, and rest once they did
//! more than an eight-hundredth of the time there was. What they see must hang together, for it is distances between uses
//! that they measure; so they rest until there is time for a long burst, in which each such hot block is used many
//! times. Who is not that hot never makes them rest.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    time::Duration,
};

/// Time that one part of work takes, in parts.
const SHARE: i64 = 800;
/// Work for which time is saved up, at most,
const SAVED_NS: i64 = 200_000_000;
/// and for which it has to be before a rest ends: about 300,000 uses of blocks.
const BURST_NS: i64 = 50_000_000;

/// When those who share it may watch. Threads that race see it a little late, which is all that happens.
#[derive(Debug)]
pub struct Bursts {
    /// The time, in nanoseconds of the owner's clock, that the work so far has used up.
    used_until: AtomicI64,
    resting: AtomicBool,
}

impl Default for Bursts {
    fn default() -> Self {
        Self { used_until: AtomicI64::new(-SAVED_NS * SHARE), resting: AtomicBool::new(false) }
    }
}

impl Bursts {
    /// Whether there is time to watch.
    pub fn allow(&self, now: Duration) -> bool {
        let saved = now.as_nanos() as i64 - self.used_until.load(Relaxed);
        let resting = if self.resting.load(Relaxed) { saved < BURST_NS * SHARE } else { saved < 0 };
        if self.resting.load(Relaxed) != resting {
            self.resting.store(resting, Relaxed);
        }
        !resting
    }

    /// Notes work that was done.
    pub fn did(&self, work_ns: u64, now: Duration) {
        let earliest = now.as_nanos() as i64 - SAVED_NS * SHARE;
        let used_until = self.used_until.load(Relaxed).max(earliest);
        self.used_until.store(used_until + work_ns as i64 * SHARE, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::{SequenceHash, insight::MissRatio};

    const SECOND: Duration = Duration::from_secs(1);

    /// Work in so many seconds of rounds of a microsecond, each with so much work if it is allowed; and rests.
    fn work(bursts: &Bursts, seconds: u64, work_ns: u64) -> (u64, u32) {
        let (mut done, mut rests, mut watched) = (0, 0, true);
        for round in 0..seconds * 1_000_000 {
            let now = Duration::from_micros(round);
            let allowed = bursts.allow(now);
            rests += u32::from(watched && !allowed);
            watched = allowed;
            if allowed {
                bursts.did(work_ns, now);
                done += work_ns;
            }
        }
        (done, rests)
    }

    #[test]
    fn little_work_never_makes_them_rest() {
        assert_eq!(work(&Bursts::default(), 3, 10), (30_000_000, 0));
    }

    #[test]
    fn much_work_is_done_in_bursts_and_bounded() {
        // A fifth of all time is asked for; there are 200 ms at first, then 1.25 ms a second, 50 at once.
        let (done, rests) = work(&Bursts::default(), 120, 200);
        assert!((300_000_000..=360_000_000).contains(&done), "{done} ns of work");
        assert!((3..=4).contains(&rests), "{rests} rests");
    }

    #[test]
    fn time_is_saved_up_to_a_bound() {
        let bursts = Bursts::default();
        bursts.did(1, SECOND * 1_000_000);
        bursts.did(SAVED_NS as u64, SECOND * 1_000_000);
        assert!(!bursts.allow(SECOND * 1_000_000));
        assert!(!bursts.allow(SECOND * 1_000_039));
        assert!(bursts.allow(SECOND * 1_000_041));
    }

    #[test]
    fn a_curve_drawn_in_bursts_is_that_of_all() {
        let mut rng = SmallRng::seed_from_u64(5);
        let prompts: Vec<Vec<SequenceHash>> =
            (0..200).map(|_| (0..30).map(|_| SequenceHash::from_bytes(rng.random())).collect()).collect();
        let (mut all, mut some) = (MissRatio::new(8192), MissRatio::new(8192));
        let (bursts, mut watched) = (Bursts::default(), 0);
        // A million blocks a second, some prompts far more often than others.
        let requests = 1_000_000;
        for request in 0..requests {
            let now = Duration::from_micros(30 * request);
            let prompt = &prompts[(rng.random::<f64>().powi(3) * 200.0) as usize];
            all.observe(prompt);
            if bursts.allow(now) {
                bursts.did(150 * some.observe(prompt) as u64, now);
                watched += 1;
            }
        }
        assert!(watched < requests / 10, "{watched} of {requests}");
        for capacity in [100, 300, 1000, 2000, 4000] {
            let (all, some) = (all.hit_ratio(capacity), some.hit_ratio(capacity));
            assert!((all - some).abs() < 0.02, "{capacity}: {all} of all, {some} in bursts");
        }
    }
}
