//! A file system that is really full: a small one, mounted in a mount namespace of this test's own.

use std::{env, fs, process::Command};

use super::*;

const CHILD: &str = "KELVIN_TEST_FULL_TIER";

#[test]
fn a_full_file_system_costs_copies_and_nothing_else() {
    if let Some(mounted) = env::var_os(CHILD) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(fill(Path::new(&mounted)));
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("nvme");
    fs::create_dir(&path).unwrap();
    let path = path.to_str().unwrap();
    let script = format!("mount -t tmpfs -o size=24m kelvin-test '{path}' || exit 77; exec \"$@\"");
    let name = "store::tiers::tests::full_disk::a_full_file_system_costs_copies_and_nothing_else";
    let child = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, dir.path())
        .output();
    match child {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() == Some(101) => {
            panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
        other => eprintln!("SKIPPED: no file system can be mounted here, so none can be filled: {other:?}"),
    }
}

/// Takes back the room that was set aside for blocks not written yet, as on a file system that cannot set aside.
fn punch(file: &fs::File, from: u64) {
    use rustix::fs::FallocateFlags;
    let bytes = file.metadata().unwrap().len() - from;
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, how, from, bytes).unwrap();
}

async fn fill(dir: &Path) {
    let options = nvme(dir);
    let mut grounds = Grounds::of(&options);
    grounds.nvme.as_mut().unwrap().retry_after = Duration::ZERO;
    let bench = Bench::start_on(48, options, grounds).await;
    bench.store(1, 0, 6).await;
    let nvme = bench.tiers().nvme().unwrap();
    let end_of = |n| nvme.copies.get(&bench.key(1, n)).unwrap().slot.address().offset + BLOCK_BYTES;
    let end = (0..6).map(end_of).max().unwrap();
    let blocks = dir.join("nvme/kelvin.blocks");
    punch(&fs::OpenOptions::new().write(true).open(blocks).unwrap(), end);
    let ballast = dir.join("nvme/ballast");
    fs::write(&ballast, vec![1; 24 << 20]).unwrap_err();

    bench.store(2, 0, 16).await;
    let report = bench.report(Tier::Nvme);
    assert!(report.lane.errors >= 1, "{report:?}");
    assert_eq!((report.blocks, report.counts.evicted_policy), (6, 0), "{report:?}");
    assert_eq!(bench.readable(2, 16).await, 16);
    bench.drop_from(&[Tier::Dram], 1);
    assert_eq!(bench.readable(1, 6).await, 6, "what is there can be read");

    fs::remove_file(&ballast).unwrap();
    for _ in 0..1000 {
        if bench.tenant().flush(bench.tiers()).await == 0 && bench.report(Tier::Nvme).blocks == 22 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bench.report(Tier::Nvme).blocks, 22, "writes resume");
    bench.drop_from(&[Tier::Dram], 2);
    assert_eq!((bench.readable(2, 16).await, bench.report(Tier::Nvme).counts.damaged), (16, 0));
    bench.stop().await;
}
