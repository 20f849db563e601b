//! What is refused, and what the refusal says to change.

use std::{fs, os::unix::fs::symlink};

use super::*;

const GIB: u64 = 1 << 30;

fn space(path: impl Into<PathBuf>, bytes: u64) -> NvmeSpace {
    NvmeSpace { path: path.into(), bytes }
}

fn object(url: &str) -> ObjectSpace {
    ObjectSpace { url: url.into(), endpoint: None, bytes: None, pack_bytes: None }
}

fn refusal(options: &TierOptions) -> String {
    options.check(GIB).expect_err("makes no sense")
}

/// A folder with directories `a` and `b`, and options that put NVMe on `a`.
fn good() -> (tempfile::TempDir, TierOptions) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let options = TierOptions {
        data: Some(folder.path().join("data")),
        nvme: vec![space(folder.path().join("a"), 64 << 20)],
        ..TierOptions::default()
    };
    (folder, options)
}

#[test]
fn good_options_pass_and_change_nothing() {
    assert_eq!(TierOptions::default().check(GIB), Ok(()));
    let (folder, mut options) = good();
    options.nvme.push(space(folder.path().join("b"), 64 << 20));
    options.object = Some(object(folder.path().join("bucket").to_str().unwrap()));
    options.policies.insert(Tier::Nvme, PolicyKind::ALL[0]);
    options.quotas.push(Quota { tier: Tier::Nvme, model: "m".into(), bytes: 128 << 20 });
    options.admission = 2;
    assert_eq!(options.check(GIB), Ok(()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    for url in ["s3://bucket", "s3://bucket/a/prefix", "s3://a.b-c"] {
        options.object = Some(ObjectSpace { endpoint: Some("http://127.0.0.1:9000".into()), ..object(url) });
        assert_eq!(options.check(GIB), Ok(()), "{url}");
    }
}

#[test]
fn a_catalog_needs_its_place() {
    let (folder, mut options) = good();
    options.data = None;
    assert!(refusal(&options).contains("needs --data DIR"));
    options.nvme.clear();
    options.object = Some(object("s3://bucket"));
    assert!(refusal(&options).contains("--object s3://bucket needs --data DIR"));
    for (data, words) in [
        (PathBuf::from("var/lib"), "is not absolute"),
        (folder.path().join("no/such"), "make that one first"),
        (PathBuf::from("/dev/null"), "is no directory"),
    ] {
        options.data = Some(data);
        let error = refusal(&options);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn paths_must_be_good() {
    let (folder, options) = good();
    let a = folder.path().join("a");
    let link = folder.path().join("link");
    symlink(&a, &link).unwrap();
    let below = a.join("below");
    fs::create_dir(&below).unwrap();
    let cases: [(Vec<PathBuf>, &str); 6] = [
        (vec!["mnt/a".into()], "is not absolute"),
        (vec![folder.path().join("none")], "mount the disk first"),
        (vec!["/dev/null".into()], "no directory, file or block device"),
        (vec![a.clone(), a.clone()], "is given twice"),
        (vec![a.clone(), link], "are the same place"),
        (vec![a, below], "overlap"),
    ];
    for (paths, words) in cases {
        let nvme = paths.into_iter().map(|path| space(path, 64 << 20)).collect();
        let error = refusal(&TierOptions { nvme, ..options.clone() });
        assert!(error.contains(words), "{words} is not in: {error}");
    }
}

#[test]
fn sizes_must_divide_and_fit() {
    let (folder, mut options) = good();
    for (bytes, words) in [
        (1 << 20, "give at least 64MiB"),
        ((64 << 20) + 1, "=67108864"),
        (1 << 60, "is more than the disk has free"),
    ] {
        options.nvme[0].bytes = bytes;
        let error = refusal(&options);
        assert!(error.contains(words), "{error}");
    }
    // Each fits alone, both do not.
    let free = rustix::fs::statvfs(folder.path()).unwrap();
    let most = free.f_bavail * free.f_frsize / 10 * 7 / 4096 * 4096;
    options.nvme = vec![space(folder.path().join("a"), most)];
    assert_eq!(options.check(GIB), Ok(()));
    options.nvme.push(space(folder.path().join("b"), most));
    let error = refusal(&options);
    assert!(error.contains("write at most") && error.contains(" and "), "{error}");
}

#[test]
fn what_a_file_has_already_is_not_asked_for_again() {
    let (folder, options) = good();
    let block_file = folder.path().join("a/kelvin.blocks");
    fs::write(&block_file, vec![1; 1 << 20]).unwrap();
    let in_directory = Spot::look(&folder.path().join("a")).unwrap();
    let in_file = Spot::look(&block_file).unwrap();
    assert!(!in_directory.is_same(&in_file));
    assert_eq!(options.check(GIB), Ok(()));
}

#[test]
fn buckets_have_urls() {
    let (folder, mut options) = good();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let inside = data.join("bucket");
    let above = folder.path().to_str().unwrap().to_owned();
    for (url, words) in [
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://Bucket", "S3 does not allow"),
        ("s3://ab", "S3 does not allow"),
        ("s3://bucket/a?b", "no prefix has"),
        ("gs://bucket", "a kind this store does not know"),
        ("https://s3.amazonaws.com/bucket", "--object-endpoint https://"),
        ("bucket", "is not absolute"),
        ("file://bucket", "is not absolute"),
        (inside.to_str().unwrap(), "overlap"),
        (above.as_str(), "overlap"),
    ] {
        options.object = Some(object(url));
        let error = refusal(&options);
        assert!(error.contains(words), "{url}: {error}");
    }
    let s3 = |endpoint: &str| Some(ObjectSpace { endpoint: Some(endpoint.into()), ..object("s3://bucket") });
    for endpoint in ["minio:9000", "https://", "http://h/bucket", "ftp://h"] {
        options.object = s3(endpoint);
        assert!(refusal(&options).contains("https://HOST:PORT"), "{endpoint}");
    }
    options.object = Some(ObjectSpace { pack_bytes: Some(1 << 10), ..object("s3://bucket") });
    assert!(refusal(&options).contains("--object-pack-size 1KiB is not possible"));
    options.object = Some(ObjectSpace { bytes: Some(1 << 20), ..object("s3://bucket") });
    assert!(refusal(&options).contains("give at least 64MiB"));
    let directory = folder.path().join("bucket");
    options.object =
        Some(ObjectSpace { endpoint: Some("http://h:1".into()), ..object(directory.to_str().unwrap()) });
    assert!(refusal(&options).contains("is for s3:// only"));
}

#[test]
fn rules_are_about_tiers_there_are() {
    let (_folder, options) = good();
    let quota = |tier, model: &str, bytes| Quota { tier, model: model.into(), bytes };
    type Change<'a> = &'a dyn Fn(&mut TierOptions);
    let cases: [(Change, &str); 8] = [
        (
            &|options| options.policies = BTreeMap::from([(Tier::Object, PolicyKind::ALL[0])]),
            "give --object too",
        ),
        (&|options| options.admission = 99, "give at most 15"),
        (&|options| options.quotas = vec![quota(Tier::Object, "m", 1)], "give --object too"),
        (&|options| options.quotas = vec![quota(Tier::Dram, "m", 2 * GIB)], "more than the tier has, 1GiB"),
        (&|options| options.quotas = vec![quota(Tier::Nvme, "m", GIB)], "more than the tier has, 64MiB"),
        (&|options| options.quotas = vec![quota(Tier::Dram, "m", 0)], "TIER:MODEL=SIZE"),
        (&|options| options.quotas = vec![quota(Tier::Dram, "m", 1); 2], "the second quota"),
        (
            &|options| {
                options.nvme.clear();
                options.exclusive = true;
            },
            "there is none: give --nvme or --object too",
        ),
    ];
    for (change, words) in cases {
        let mut changed = options.clone();
        change(&mut changed);
        let error = refusal(&changed);
        assert!(error.contains(words), "{words} is not in: {error}");
    }
}

#[test]
fn names_are_read_as_they_are_written() {
    for offload in [Offload::Eager, Offload::NearEviction] {
        assert_eq!(offload.to_string().parse(), Ok(offload));
    }
    for tier in [Tier::Dram, Tier::Nvme, Tier::Object] {
        assert_eq!(tier_of_name(tier_name(tier)), Ok(tier));
    }
    assert!("late".parse::<Offload>().unwrap_err().contains("near-eviction or eager"));
    assert!(tier_of_name("hbm").is_err());
    for (bytes, text) in [(0, "0B"), (4096, "4KiB"), (GIB, "1GiB"), (GIB + 1, "1.0GiB"), (3 << 29, "1.5GiB")]
    {
        assert_eq!(show(bytes), text);
    }
}
