//! A server's heap: huge pages, unless somebody says otherwise.

use std::fs;

use super::store::Running;

/// The processes' variable, and whether their heap asks the kernel for huge pages.
fn heap(store: &Running) -> (Option<String>, bool) {
    let proc = format!("/proc/{}", store.pid());
    let environ = fs::read_to_string(format!("{proc}/environ")).unwrap();
    let tunables = environ.split('\0').find_map(|entry| entry.strip_prefix("GLIBC_TUNABLES="));
    let maps = fs::read_to_string(format!("{proc}/smaps")).unwrap();
    let heap = maps.split_once("[heap]").expect("it has a heap").1;
    let flags = heap.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    (tunables.map(str::to_owned), flags.split_whitespace().any(|flag| flag == "hg"))
}

#[test]
fn a_server_asks_for_huge_pages_where_the_kernel_waits_for_that() {
    let modes = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let store = Running::start(&[]);
    if cfg!(target_env = "gnu") && modes.contains("[madvise]") {
        assert_eq!(heap(&store), (Some("glibc.malloc.hugetlb=1".into()), true));
    } else {
        assert_eq!(heap(&store).0, None, "{modes}");
    }
    store.stop();
}

#[test]
fn what_the_operator_set_stays() {
    let store = Running::start_with(&[], &[("GLIBC_TUNABLES", "")]);
    assert_eq!(heap(&store).0, Some(String::new()));
    store.stop();
}
