//! This process's heap, in huge pages.
//!
//! # Overview
//! The index, a router's board and a policy's lists are read in places that nobody can foresee. In pages of 4 KiB most of
//! these reads miss the TLB as well as the cache; on a virtual machine a page walk goes through two tables, and now and
//! then waits for the hypervisor to bring the page back: in one and the same hour `kelvin-bench index` printed a p99 of
//! a decision of 19 us in huge pages and of 48 to 152 without.
//!
//! Where the kernel gives huge pages to whoever asks (`madvise`), glibc's allocator asks if a process was started with a
//! certain variable (from version 2.35 on); there is no call for it. So a server starts itself once more with that
//! variable, in the same process, once it knows its arguments and before it has threads, files or sockets.
//!
//! # Limits
//! With another C library, where the kernel gives huge pages to all or to none, or where `GLIBC_TUNABLES` is set
//! already (empty, if huge pages are not wanted), nothing is done.

use std::{io, os::unix::process::CommandExt, path::Path, process::Command};

const TUNABLES: &str = "GLIBC_TUNABLES";
/// Ask the kernel for transparent huge pages.
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";
/// Says that this was tried: a process with privileges of its file does not see the other variable.
const TRIED: &str = "KELVIN_HEAP_IN_HUGE_PAGES";
/// Whom the kernel gives them to.
const KERNEL: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Has this process's allocator ask for huge pages. The process goes on from here, or anew from `main` on, and then this
/// returns at once.
///
/// # Errors
/// It could not be started anew. It should end then: signals are not as they were.
pub fn in_huge_pages() -> io::Result<()> {
    let is_glibc = cfg!(all(target_os = "linux", target_env = "gnu"));
    if !is_glibc || [TUNABLES, TRIED].iter().any(|name| std::env::var_os(name).is_some()) {
        return Ok(());
    }
    let asks = std::fs::read_to_string(KERNEL).is_ok_and(|modes| modes.contains("[madvise]"));
    let program = std::env::current_exe().ok().filter(|program| is_started_by(program));
    let (true, Some(program)) = (asks, program) else { return Ok(()) };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let error = again.args(arguments).env(TUNABLES, HUGE_PAGES).env(TRIED, "1").exec();
    let said = format!("cannot start anew with a heap in huge pages ({TUNABLES}= does without): {error}");
    Err(io::Error::new(error.kind(), said))
}

/// Whether that file, started with this process's arguments, is this process: not if it was replaced meanwhile, nor if
/// it is a loader that was told what to load.
fn is_started_by(program: &Path) -> bool {
    let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    program.exists() && !name.starts_with("ld-") && !name.starts_with("ld.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_and_a_file_that_is_gone_are_not_started() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        ["kelvin", "ld-linux-x86-64.so.2", "ld.so"]
            .iter()
            .for_each(|name| std::fs::write(at(name), "").unwrap());
        assert!(is_started_by(&at("kelvin")));
        assert!(!is_started_by(&at("kelvin (deleted)")));
        assert!(!is_started_by(&at("ld-linux-x86-64.so.2")) && !is_started_by(&at("ld.so")));
    }
}
