//! A file system that is really full: a small one, mounted in a mount namespace of this test's own.

use std::{env, fs, process::Command};

use super::*;

const CHILD: &str = "KELVIN_TEST_FULL_DISK";

#[test]
fn a_full_disk_is_an_error_and_passes() {
    if let Some(mounted) = env::var_os(CHILD) {
        return fill(Path::new(&mounted));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let script = format!("mount -t tmpfs -o size=48m kelvin-test '{path}' || exit 77; exec \"$@\"");
    let me = env::current_exe().unwrap();
    let name = "catalog::tests::full_disk::a_full_disk_is_an_error_and_passes";
    let child = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"])
        .arg(me)
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, path)
        .output();
    match child {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() == Some(101) => {
            panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
        other => eprintln!("SKIPPED: no file system can be mounted here, so none can be filled: {other:?}"),
    }
}

fn fill(dir: &Path) {
    let (catalog, _) = open(dir);
    // What others put on the disk.
    let ballast = dir.join("ballast");
    let mut written = Vec::new();
    let append = |from: u64, written: &mut Vec<Record>| -> Result<(), CatalogError> {
        let records: Vec<Record> = (from..from + 64).map(|n| record(1, n)).collect();
        catalog.append(&records)?;
        written.extend(records);
        Ok(())
    };
    append(1, &mut written).unwrap();
    let mut bytes = 47 << 20;
    while fs::write(&ballast, vec![1; bytes]).is_err() {
        bytes -= 256 << 10;
    }
    let mut next = 65;
    let error = loop {
        match append(next, &mut written) {
            Ok(()) => next += 64,
            Err(error) => break error,
        }
        assert!(next < 1_000_000, "the disk does not get full");
    };
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().to_lowercase().contains("no space"), "{error}");
    assert_eq!(catalog.stats().writes_failed, 1);
    next += 64;
    // As long as it is full, all that is asked for is refused or done, and nothing panics.
    for _ in 0..3 {
        _ = append(next, &mut written);
        _ = catalog.sync();
        _ = catalog.remove(&[(written[0].namespace, written[0].sequence + 1_000_000)]);
        next += 64;
    }
    // There is room again.
    fs::remove_file(&ballast).unwrap();
    catalog.reopen();
    append(next, &mut written).unwrap();
    assert!(!catalog.stats().closed);
    assert_eq!(load(&catalog, 2).0, written);
    drop(catalog);
    let (catalog, _) = open(dir);
    assert_eq!(load(&catalog, 1).0, written);
}
