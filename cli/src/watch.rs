//! `kelvin watch`: the blocks of a running store as they come and go.

use anyhow::{Context, bail};
use kelvin_proto::kv::v1::block_event::Kind;
use kelvin_proto::kv::v1::{BlockEvent, WatchResponse};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::shutdown::Shutdown;
use crate::store_at::{StoreAt, choose};
use crate::values::{self, hex};

/// Print a running store's block events: the present blocks first, then live, until Ctrl-C
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreAt,

    /// Whose blocks: a namespace's id, as "kelvin stats" shows it [default: the only one]
    #[arg(long, value_name = "ID")]
    namespace: Option<u64>,

    /// Print one JSON object an event
    #[arg(long)]
    json: bool,
}

/// Runs until a signal, until nobody reads any more, or until the store ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = Shutdown::listen_and_exit()?;
    let reader_left = reader_left()?;
    let client = args.store.connect().await?;
    let stats = client.stats().await.context("ask the store for its namespaces")?;
    let namespace = choose(&stats.namespaces, args.namespace)?;
    let mut events = client.watch(namespace, 0, 0).await.context("watch the store")?;
    loop {
        let message = tokio::select! {
            message = events.message() => message.context("the store went away")?,
            () = stop.cancelled() => return Ok(()),
            () = reader_left.cancelled() => return Ok(()),
        };
        let Some(message) = message else { bail!("the store ended the stream") };
        let text = if args.json { json_lines(&message) } else { lines(&message) };
        values::print(&text)?;
    }
}

/// Cancelled when stdout's reader, `head` for instance, is gone: between two events no write would tell.
fn reader_left() -> std::io::Result<CancellationToken> {
    let left = CancellationToken::new();
    let token = left.clone();
    std::thread::Builder::new().name("stdout".into()).spawn(move || {
        let stdout = std::io::stdout();
        // Errors and hang-ups are reported without being asked for; there is nothing else to wait for.
        if poll(&mut [PollFd::new(&stdout, PollFlags::empty())], None).is_ok() {
            token.cancel();
        }
    })?;
    Ok(left)
}

fn kind(event: &BlockEvent) -> &'static str {
    match event.kind() {
        Kind::Stored => "stored",
        Kind::Removed => "removed",
        Kind::Unspecified => "unknown",
    }
}

fn tier(event: &BlockEvent) -> String {
    values::tier(event.tier())
}

fn lines(message: &WatchResponse) -> String {
    let mut text = String::new();
    if message.lost > 0 {
        text += &format!("# {} events were lost, since this reader was too slow\n", message.lost);
    }
    if message.snapshot_begin {
        text += "# blocks that are present\n";
    }
    for event in &message.events {
        let parent = if event.parent.is_empty() { "-".repeat(32) } else { hex(&event.parent) };
        text += &format!("{:<8}{}  after {parent}  {}\n", kind(event), hex(&event.hash), tier(event));
    }
    if message.snapshot_end {
        text += "# live\n";
    }
    text
}

fn json_lines(message: &WatchResponse) -> String {
    let marks = [
        message.snapshot_begin.then(|| json!({"event": "snapshot_begin"})),
        (message.lost > 0).then(|| json!({"event": "lost", "count": message.lost})),
    ];
    let events = message.events.iter().map(|event| {
        Some(json!({
            "event": kind(event),
            "hash": hex(&event.hash),
            "parent": hex(&event.parent),
            "tier": tier(event),
        }))
    });
    let end = [message.snapshot_end.then(|| json!({"event": "snapshot_end", "cursor": message.cursor}))];
    marks.into_iter().chain(events).chain(end).flatten().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines() {
        let event = |kind, parent: &[u8]| BlockEvent {
            kind,
            hash: vec![0xab, 1].into(),
            parent: parent.to_vec().into(),
            tier: 2,
        };
        let message = WatchResponse {
            snapshot_begin: true,
            snapshot_end: true,
            lost: 2,
            events: vec![event(1, &[]), event(2, &[9])],
            ..Default::default()
        };
        let text = lines(&message);
        assert!(text.contains("stored  ab01  after ----"), "{text}");
        assert!(text.contains("removed ab01  after 09  dram\n# live\n"), "{text}");
        let events: Vec<_> = json_lines(&message)
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone())
            .collect();
        assert_eq!(events, ["snapshot_begin", "lost", "stored", "removed", "snapshot_end"]);
    }
}
