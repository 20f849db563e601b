//! This process's heap, in huge pages.
//!
//! # Overview
//! The index, a router's board and a policy's lists are read in places that nobody can foresee. In pages of 4 KiB most
//! of these reads miss the TLB as well as the cache; on a virtual machine a page walk goes through two tables, and now
//! and then waits for the hypervisor to bring the page back: in one and the same hour `kelvin-bench index` printed a p99
//! of a decision of 19 us in huge pages and of 48 to 152 without.
//!
//! The kernel gives huge pages to whoever asks for them (`madvise`, the default of Debian and most others), and glibc's
//! allocator asks if a process was started with a certain variable; there is no call for it. So a server starts itself
//! once more with that variable, in the same process, before it does anything else.
//!
//! # Limits
//! With another C library, where the kernel gives huge pages to all or to none, or where `GLIBC_TUNABLES` is set
//! already (empty, if huge pages are not wanted), nothing is done.

use std::{os::unix::process::CommandExt, process::Command};

const TUNABLES: &str = "GLIBC_TUNABLES";
/// Ask the kernel for transparent huge pages.
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";
/// Whom the kernel gives them to.
const KERNEL: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Has this process's allocator ask for huge pages; to be called first of all. The process goes on either as if nothing
/// had happened, or anew from `main` on, and then this returns at once.
pub fn in_huge_pages() {
    let is_glibc = cfg!(all(target_os = "linux", target_env = "gnu"));
    if !is_glibc || std::env::var_os(TUNABLES).is_some() {
        return;
    }
    let asks = std::fs::read_to_string(KERNEL).is_ok_and(|modes| modes.contains("[madvise]"));
    let (true, Ok(program)) = (asks, std::env::current_exe()) else { return };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // It returns only where it failed, and then small pages do.
    let _ = again.args(arguments).env(TUNABLES, HUGE_PAGES).exec();
}
