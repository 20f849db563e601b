//! `kelvin top` on a real cluster, as plain text and on a terminal.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::harness::Cluster;
use super::run;

#[tokio::test(flavor = "multi_thread")]
async fn top_of_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[], &[]);
    cluster.with_store().await;
    let prompt = "What is hot? ".repeat(40);
    cluster.chat(&prompt).await.unwrap();
    cluster.chat(&prompt).await.unwrap();

    let router = cluster.url("");
    let (output, text, stderr) = run(&["top", "--once", "--store", cluster.store(), "--router", &router]);
    assert!(output.status.success(), "{stderr}");
    for words in [
        "kelvin top",
        "router http://127.0.0.1",
        " ok, ",
        "dram",
        "never stored",
        "decode-0",
        "prefill-0",
        "toy",
    ] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}') && !text.contains("nothing was asked"), "{text}");

    // Without a terminal there is nothing to draw on.
    let (output, _, stderr) = run(&["top", "--store", cluster.store()]);
    assert!(!output.status.success() && stderr.contains("--once prints plain text"), "{stderr}");

    let (left, seen) = on_terminal(cluster.store(), "q");
    assert!(left, "{seen}");
    let (left, seen) = on_terminal(cluster.store(), "\u{3}");
    assert!(left, "{seen}");
    cluster.stop();
}

/// Runs it on a terminal of its own (`script` makes one) and presses a key once something is drawn. Whether it ended
/// well and gave the terminal back, and all that it wrote.
fn on_terminal(store: &str, key: &str) -> (bool, String) {
    let top = format!("stty rows 24 cols 80; {} top --store {store}", env!("CARGO_BIN_EXE_kelvin"));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--flush", "--command", &top, "/dev/null"]).env("TERM", "xterm");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    let text = |seen: &[u8]| String::from_utf8_lossy(seen).into_owned();
    while !text(&seen).contains("sessions") {
        match screen.read(&mut piece).unwrap() {
            // It ended without a word; what follows fails, and shows why.
            0 => break,
            bytes => seen.extend_from_slice(&piece[..bytes]),
        }
    }
    // Who is gone takes no key.
    let _ = keys.write_all(key.as_bytes());
    screen.read_to_end(&mut seen).unwrap();
    let ended = child.wait().unwrap().success();
    // It left the alternate screen and shows the cursor again.
    let given_back = ["\u{1b}[?1049l", "\u{1b}[?25h"].iter().all(|sequence| text(&seen).contains(sequence));
    (ended && given_back, text(&seen))
}
