//! `kelvin top`: a store and its router, live in a terminal.
//!
//! # Overview
//! Every interval a [`Sample`] is taken; two of them and the history make a [`View`], which is plain figures; [`draw`]
//! makes lines of it, for the terminal and for `--once` alike. Rates are between two samples, everything else is since
//! the store's start.

mod draw;
mod sample;
mod view;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::shutdown::Shutdown;
use crate::store_at::StoreAt;
use crate::values;
use sample::{Sample, Source};
use view::View;

/// Watch a running store, and the router before it, live: hits, misses, tiers, leases, tenants, workers
///
/// Keys: q or Ctrl-C quits, the arrows scroll.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreAt,

    /// The router, to see its workers and backends too [default: none]
    #[arg(long, env = "KELVIN_ROUTER", value_name = "URL", value_parser = values::endpoint)]
    router: Option<String>,

    /// Time between two looks
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = values::duration)]
    interval: Duration,

    /// Print what is to be seen once, as plain text, and end
    #[arg(long)]
    once: bool,
}

/// Between two looks, at least.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Looks whose hit rates are kept for the trend.
const TREND: usize = 60;
/// Width of what `--once` prints.
const COLUMNS: u16 = 100;
/// How long the thread that reads keys sleeps without one.
const KEY_WAIT: Duration = Duration::from_millis(100);

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let source =
        Source { store: args.store.connect().await?, url: args.store.url.clone(), router: args.router };
    let first = source.sample().await.context("ask the store for its statistics")?;
    if args.once {
        return values::print(&draw::text(&View::of(&first, None, &VecDeque::new()), COLUMNS));
    }
    if !std::io::stdout().is_terminal() {
        bail!("the output is no terminal; --once prints plain text");
    }
    let stop = Shutdown::listen()?.drain;
    let mut keys = keys()?;
    // Panics restore the terminal, too.
    let mut terminal = ratatui::try_init().context("take the terminal")?;
    let watched = tokio::select! {
        watched = watch(&mut terminal, &source, first, args.interval.max(INTERVAL_MIN), &mut keys) => watched,
        () = stop.cancelled() => Ok(()),
    };
    ratatui::try_restore().context("give the terminal back")?;
    watched
}

/// Draws until somebody quits.
async fn watch(
    terminal: &mut DefaultTerminal,
    source: &Source,
    first: Sample,
    interval: Duration,
    keys: &mut mpsc::Receiver<Event>,
) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    let (mut trend, mut scroll) = (VecDeque::with_capacity(TREND), 0u16);
    let mut view = View::of(&first, None, &trend);
    let mut last = first;
    loop {
        terminal.draw(|frame| scroll = draw::screen(&view, scroll, frame.area(), frame.buffer_mut()))?;
        tokio::select! {
            _ = tick.tick() => match source.sample().await {
                Ok(sample) => {
                    if trend.len() == TREND {
                        trend.pop_front();
                    }
                    trend.extend(view::hit_ratio_between(&last, &sample));
                    view = View::of(&sample, Some(&last), &trend);
                    last = sample;
                }
                // The last figures stay, with what is wrong above them.
                Err(error) => view.trouble = Some(format!("{error:#}")),
            },
            key = keys.recv() => match key.as_ref().map(wish) {
                None | Some(Wish::Quit) => return Ok(()),
                Some(Wish::Scroll(lines)) => scroll = scroll.saturating_add_signed(lines),
                Some(Wish::Nothing) => {}
            },
        }
    }
}

/// What somebody wants by a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Quit,
    Scroll(i16),
    /// A resize wants to be drawn, like all that wants nothing.
    Nothing,
}

fn wish(event: &Event) -> Wish {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
        return Wish::Nothing;
    };
    match code {
        KeyCode::Char('q') | KeyCode::Esc => Wish::Quit,
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Wish::Quit,
        KeyCode::Down | KeyCode::Char('j') => Wish::Scroll(1),
        KeyCode::Up | KeyCode::Char('k') => Wish::Scroll(-1),
        KeyCode::PageDown => Wish::Scroll(10),
        KeyCode::PageUp => Wish::Scroll(-10),
        _ => Wish::Nothing,
    }
}

/// Events of the terminal, by a thread of their own: reading them blocks. It ends when nobody takes them any more.
fn keys() -> anyhow::Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(16);
    let read = move || {
        while !sender.is_closed() {
            match event::poll(KEY_WAIT) {
                Ok(false) => {}
                Ok(true) => match event::read() {
                    Ok(event) => drop(sender.blocking_send(event)),
                    Err(_) => return,
                },
                // The terminal is gone; without the sender the view ends.
                Err(_) => return,
            }
        }
    };
    std::thread::Builder::new().name("keys".into()).spawn(read).context("read keys")?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_meaning() {
        let key = |code, modifiers| wish(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Wish::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Wish::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), Wish::Nothing);
        assert_eq!(key(KeyCode::Down, KeyModifiers::NONE), Wish::Scroll(1));
        assert_eq!(wish(&Event::Resize(80, 24)), Wish::Nothing);
    }
}
