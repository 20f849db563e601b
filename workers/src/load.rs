//! How busy a worker is and how fast: figures for the router, written by the engine's side, read by Describe.

use kelvin_proto::worker::v1;
use parking_lot::Mutex;

/// Weight of a new measurement: the last ten or so count.
const WEIGHT: f64 = 0.2;

/// The figures, shared.
#[derive(Debug, Default)]
pub(crate) struct LoadMeter(Mutex<v1::Load>);

impl LoadMeter {
    /// Figures of a worker that has just started.
    pub(crate) fn new(slots: u32) -> Self {
        Self(Mutex::new(v1::Load { slots, ..Default::default() }))
    }

    /// Changes them.
    pub(crate) fn update(&self, change: impl FnOnce(&mut v1::Load)) {
        change(&mut self.0.lock());
    }

    /// As they are now.
    pub(crate) fn snapshot(&self) -> v1::Load {
        *self.0.lock()
    }
}

/// Moves an average towards a measurement; the first one sets it.
pub(crate) fn average(value: &mut f64, measured: f64) {
    *value = if *value == 0.0 { measured } else { *value + WEIGHT * (measured - *value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_start_at_the_first_measurement_and_follow() {
        let mut value = 0.0;
        average(&mut value, 10.0);
        assert_eq!(value, 10.0);
        average(&mut value, 20.0);
        assert_eq!(value, 12.0);
        (0..100).for_each(|_| average(&mut value, 20.0));
        assert!((value - 20.0).abs() < 1e-6);
    }
}
