//! CPU time of this process, fine enough for measurements of a second.

use std::fs;

/// CPU seconds that the threads which live now have used. Measure over a time in which none ends.
pub(super) fn process_seconds() -> f64 {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 0.0 };
    tasks.flatten().map(|task| seconds(&task.path().join("schedstat"))).sum()
}

/// CPU seconds of this thread.
pub(super) fn thread_seconds() -> f64 {
    seconds("/proc/thread-self/schedstat".as_ref())
}

/// Zero where the kernel keeps no such figures.
fn seconds(path: &std::path::Path) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let nanoseconds: f64 = text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0.0);
    nanoseconds / 1e9
}
