//! What a person reads: help, versions, and what is wrong with their flags.

use super::{kelvin, run};

/// Subcommand, and what its help must say: defaults, units, environment variables.
const SUBCOMMANDS: [(&str, &[&str]); 8] = [
    (
        "up",
        &[
            "--model <PATH|toy>",
            "127.0.0.1:8080",
            "1GiB",
            "4096",
            "KELVIN_MODEL",
            "$XDG_RUNTIME_DIR",
            "tokens",
            "--nvme <PATH=SIZE>",
            "--data <DIR>",
        ],
    ),
    (
        "store",
        &[
            "127.0.0.1:7440",
            "1GiB",
            "10s",
            "60s",
            "KELVIN_STORE_LISTEN",
            "--socket",
            "--admin-token-file",
            "--data <DIR>",
            "--nvme <PATH=SIZE>",
            "--object <URL>",
            "--policy <TIER=POLICY>",
            "--quota <TIER:MODEL=SIZE>",
            "near-eviction",
            "--secret-file",
            "inspect",
            "Examples:",
        ],
    ),
    (
        "worker",
        &["prefill", "decode", "http://127.0.0.1:7440", "4096", "16", "128", "KELVIN_MODEL", "tokens"],
    ),
    (
        "router",
        &[
            "127.0.0.1:8080",
            "--admin-listen",
            "--worker <URL>",
            "1024",
            "KELVIN_LISTEN",
            "auto",
            "--queue-timeout <DURATION>",
            "2m",
            "deadline_ms",
            "--long-tokens <TOKENS>",
            "--migrations-max <COUNT>",
            "10s",
            "KELVIN_BACKENDS_REDIS",
            "kelvin:backend:one",
            "--hedge-after <MS>",
            "store=http",
        ],
    ),
    ("stats", &["http://127.0.0.1:7440", "--json", "KELVIN_STORE"]),
    ("watch", &["http://127.0.0.1:7440", "--json", "Ctrl-C"]),
    ("top", &["http://127.0.0.1:7440", "--router <URL>", "KELVIN_ROUTER", "2s", "--once", "Ctrl-C"]),
    ("explain", &["<ID>", "--router <URL>", "--admin-listen", "x-request-id", "--json"]),
];

/// Subcommand of `kelvin store`, and what its help must say.
const OF_A_STORE: [(&str, &[&str]); 8] = [
    ("inspect", &["--store <URL>", "--data <DIR>", "--json"]),
    ("verify", &["--store <URL>", "--data <DIR>", "--tier <TIER>", "code 1", "--rate <SIZE>"]),
    ("gc", &["--data <DIR>", "--live <PERCENT>", "--dry-run"]),
    ("pin", &["<HASH>", "--ttl <DURATION>", "--subtree", "--owner"]),
    ("unpin", &["[PIN]...", "--owner"]),
    ("prefetch", &["<HASH>", "--namespace <ID>"]),
    ("evict", &["[HASH]", "--all", "--tier <TIER>"]),
    ("explain", &["<HASH>...", "KELVIN_TOKEN"]),
];

#[test]
fn every_subcommand_of_a_store_has_help() {
    let (_, store, _) = run(&["store", "--help"]);
    for (subcommand, words) in OF_A_STORE {
        assert!(store.contains(&format!("  {subcommand} ")), "{subcommand} is not in:\n{store}");
        let (output, help, _) = run(&["store", subcommand, "--help"]);
        assert!(output.status.success(), "{subcommand}");
        for word in words {
            assert!(help.contains(word), "{subcommand}: {word} is not in:\n{help}");
        }
    }
}

#[test]
fn every_subcommand_has_help() {
    let (output, top, _) = run(&["--help"]);
    assert!(output.status.success());
    assert!(top.contains("KELVIN_LOG") && top.contains("--log-format"), "{top}");
    assert!(top.contains("--otlp <URL>") && top.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{top}");
    for (subcommand, words) in SUBCOMMANDS {
        assert!(top.contains(&format!("  {subcommand} ")), "{subcommand} is not in:\n{top}");
        let (output, help, _) = run(&[subcommand, "--help"]);
        assert!(output.status.success(), "{subcommand}");
        for word in words {
            assert!(help.contains(word), "{subcommand}: {word} is not in:\n{help}");
        }
    }
}

/// A flag without a word about it is a flag nobody understands.
#[test]
fn every_flag_is_explained() {
    let of_a_store = OF_A_STORE.map(|(subcommand, _)| vec!["store", subcommand]);
    let all = SUBCOMMANDS.map(|(subcommand, _)| vec![subcommand]).into_iter().chain(of_a_store);
    for subcommand in all {
        let (_, help, _) = run(&[&subcommand[..], &["-h"]].concat());
        for line in help.lines().filter(|line| line.trim_start().starts_with("--")) {
            let (_, explained) = line.trim_start().split_once("  ").unwrap_or_default();
            assert!(!explained.trim().is_empty(), "{subcommand:?}: {line}");
        }
    }
}

#[test]
fn versions() {
    for args in [&["--version"][..], &["store", "--version"]] {
        let (output, stdout, _) = run(args);
        assert!(output.status.success());
        assert!(stdout.trim_end().ends_with(env!("CARGO_PKG_VERSION")), "{stdout}");
    }
}

#[test]
fn wrong_flags_get_a_hint() {
    let hash = "00112233445566778899aabbccddeeff";
    let cases: [(&[&str], &str); 27] = [
        (&[], "Usage: kelvin"),
        (&["stroe"], "similar subcommands exist: 'router', 'store'"),
        (&["store", "--drm", "1GiB"], "a similar argument exists: '--dram'"),
        (&["store", "--dram", "1 potato"], "the units are B, KiB"),
        (&["store", "--listen", "0.0.0.0:7440"], "this version has no TLS yet"),
        (&["store", "--session-ttl", "10"], "e.g. 500ms"),
        (&["store", "--nvme", "/mnt/a"], "write PATH=SIZE, e.g. /mnt/a=200GiB"),
        (&["store", "--nvme", "/mnt/a=much"], "the units are"),
        (&["store", "--object-endpoint", "http://h:1"], "--object <URL>"),
        (&["store", "--policy", "nvme=best"], "no policy is called \"best\""),
        (&["store", "--policy", "disk=lru"], "the tiers are dram, nvme and object"),
        (&["store", "--quota", "dram=1GiB"], "write TIER:MODEL=SIZE"),
        (&["store", "--offload", "late"], "near-eviction or eager"),
        (&["store", "--admission", "0"], "0 is not in 1.."),
        (&["store", "pin", "xyz"], "32 hexadecimal digits"),
        (&["store", "unpin"], "--owner <NAME>"),
        (&["store", "evict"], "--all"),
        (&["store", "evict", hash, "--all"], "cannot be used with"),
        (&["store", "gc", "--live", "0"], "0 is not in 1..=100"),
        (&["worker", "--model", "toy"], "--role <ROLE>"),
        (&["worker", "--model", "toy", "--role", "both"], "possible values: prefill, decode"),
        (&["worker", "--model", "toy", "--role", "decode", "--threads", "0"], "0 is not in 1.."),
        (&["router", "--model", "toy"], "--worker <URL>"),
        (&["store", "--otlp", "https://h:4317"], "without TLS"),
        (&["top", "--router", "nowhere"], "write http://HOST:PORT"),
        (&["up"], "--model <PATH|toy>"),
        (&["up", "--model", "toy", "--decode", "0"], "0 is not in 1..=64"),
    ];
    for (args, hint) in cases {
        let (output, _, stderr) = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(hint), "{args:?}: {hint} is not in:\n{stderr}");
    }
}

#[test]
fn a_wrong_log_filter_is_said() {
    let output = kelvin(&["stats"]).env("KELVIN_LOG", "kelvin=loud").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("KELVIN_LOG is \"kelvin=loud\""), "{stderr}");
}

#[test]
fn tiers_that_make_no_sense_are_refused_with_what_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let huge = format!("{}=8000TiB", dir.path().display());
    let odd = format!("{}=100MB", dir.path().display());
    let cases: [(&[&str], &str); 6] = [
        (&["--nvme", "/tmp=1GiB"], "--nvme /tmp needs --data DIR"),
        (&["--data", data, "--nvme", &huge], "is more than the disk has free"),
        (&["--data", data, "--nvme", &odd], "does not divide into I/O pages"),
        (&["--data", data, "--object", "https://h/b"], "--object s3://BUCKET/PREFIX --object-endpoint"),
        (&["--data", data, "--policy", "nvme=lru"], "give --nvme too"),
        (&["--secret-file", "/dev/null"], "neither 32 bytes nor 64 hexadecimal digits"),
    ];
    for (flags, reason) in cases {
        let (output, _, stderr) = run(&[&["store", "--listen", "127.0.0.1:0"], flags].concat());
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {stderr}");
        assert!(stderr.contains(reason), "{flags:?}: {reason} is not in:\n{stderr}");
    }
    let (output, _, stderr) =
        run(&["up", "--model", "toy", "--listen", "127.0.0.1:0", "--nvme", "/tmp=1GiB"]);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("needs --data DIR"), "{stderr}");
}

#[test]
fn mistakes_are_found_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("model.gguf");
    std::fs::write(&text, "not a model").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let long = dir.path().join("x".repeat(100));
    let cases: [(&[&str], &str); 5] = [
        (&["--model", "/no/such.gguf"], "open the model /no/such.gguf: No such file"),
        (&["--model", text.to_str().unwrap()], "is not a GGUF file"),
        (&["--model", "toy", "--listen", &taken], "Address already in use"),
        (&["--model", "toy", "--dram", "8000TiB"], "too little memory"),
        (&["--model", "toy", "--run-dir", long.to_str().unwrap()], "give a shorter --run-dir"),
    ];
    for (flags, reason) in cases {
        let free = ["up", "--listen", "127.0.0.1:0"];
        let args = if flags.contains(&"--listen") { &free[..1] } else { &free[..] };
        let (output, stdout, stderr) = run(&[args, flags].concat());
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {stderr}");
        assert!(stderr.contains(reason), "{flags:?}: {reason} is not in:\n{stderr}");
        assert!(!stderr.contains("starting the store") && stdout.is_empty(), "{flags:?}: {stderr}");
    }
}
