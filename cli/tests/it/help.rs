//! What a person reads: help, versions, and what is wrong with their flags.

use super::{kelvin, run};

/// Subcommand, and what its help must say: defaults, units, environment variables.
const SUBCOMMANDS: [(&str, &[&str]); 6] = [
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
        ],
    ),
    ("store", &["127.0.0.1:7440", "1GiB", "10s", "60s", "KELVIN_STORE_LISTEN", "--socket"]),
    (
        "worker",
        &["prefill", "decode", "http://127.0.0.1:7440", "4096", "16", "128", "KELVIN_MODEL", "tokens"],
    ),
    ("router", &["127.0.0.1:8080", "--worker <URL>", "1024", "KELVIN_LISTEN", "auto"]),
    ("stats", &["http://127.0.0.1:7440", "--json", "KELVIN_STORE"]),
    ("watch", &["http://127.0.0.1:7440", "--json", "Ctrl-C"]),
];

#[test]
fn every_subcommand_has_help() {
    let (output, top, _) = run(&["--help"]);
    assert!(output.status.success());
    assert!(top.contains("KELVIN_LOG") && top.contains("--log-format"), "{top}");
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
    for (subcommand, _) in SUBCOMMANDS {
        let (_, help, _) = run(&[subcommand, "-h"]);
        for line in help.lines().filter(|line| line.trim_start().starts_with("--")) {
            let (_, explained) = line.trim_start().split_once("  ").unwrap_or_default();
            assert!(!explained.trim().is_empty(), "{subcommand}: {line}");
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
    let cases: [(&[&str], &str); 12] = [
        (&[], "Usage: kelvin"),
        (&["stroe"], "similar subcommands exist: 'router', 'store'"),
        (&["store", "--drm", "1GiB"], "a similar argument exists: '--dram'"),
        (&["store", "--dram", "1 potato"], "the units are B, KiB"),
        (&["store", "--listen", "0.0.0.0:7440"], "this version has no TLS yet"),
        (&["store", "--session-ttl", "10"], "e.g. 500ms"),
        (&["worker", "--model", "toy"], "--role <ROLE>"),
        (&["worker", "--model", "toy", "--role", "both"], "possible values: prefill, decode"),
        (&["worker", "--model", "toy", "--role", "decode", "--threads", "0"], "0 is not in 1.."),
        (&["router", "--model", "toy"], "--worker <URL>"),
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
