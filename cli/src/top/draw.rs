//! A view as lines, for a terminal and as plain text.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget};

use super::sample::{Backend, Router, Worker};
use super::view::{NamespaceRow, TierRow, View};
use crate::stats::uptime;
use crate::values::Size;

/// Columns of a bar of shares.
const BAR: usize = 24;
const FILL: usize = 10;
/// Names longer than this are cut.
const NAME: usize = 22;

/// Draws what `scroll` leaves, and returns how far it could be scrolled.
pub(super) fn screen(view: &View, scroll: u16, area: Rect, buffer: &mut Buffer) -> u16 {
    if area.is_empty() {
        return scroll;
    }
    let lines = lines(view);
    let hidden = (lines.len() as u16).saturating_sub(area.height);
    let scroll = scroll.min(hidden);
    Paragraph::new(lines).scroll((scroll, 0)).render(area, buffer);
    if hidden > scroll {
        let more = format!(" {} more lines, arrows scroll ", hidden - scroll);
        let x = area.right().saturating_sub(more.len() as u16);
        buffer.set_string(x, area.bottom() - 1, more, Style::new().add_modifier(Modifier::REVERSED));
    }
    scroll
}

/// The same as plain text.
pub(super) fn text(view: &View, columns: u16) -> String {
    let lines = lines(view);
    let area = Rect::new(0, 0, columns, lines.len() as u16);
    let mut buffer = Buffer::empty(area);
    Paragraph::new(lines).render(area, &mut buffer);
    plain(&buffer)
}

/// What a buffer shows, without trailing spaces.
fn plain(buffer: &Buffer) -> String {
    let area = buffer.area;
    let row = |y| (area.left()..area.right()).map(move |x| buffer[(x, y)].symbol()).collect::<String>();
    (area.top()..area.bottom()).map(|y| format!("{}\n", row(y).trim_end())).collect()
}

fn lines(view: &View) -> Vec<Line<'static>> {
    let mut lines = head(view);
    lines.push(Line::default());
    lines.extend(hits(view));
    lines.push(Line::default());
    lines.push(title(format!(
        "{:<8}{:<17}{:>9}{:>9}{:>10}{:>10}{:>6}  health",
        "tier", "fill", "used", "capacity", "read/s", "written/s", "queue"
    )));
    lines.extend(view.tiers.iter().map(tier));
    lines.push(Line::default());
    lines.extend(counts(view));
    if !view.namespaces.is_empty() {
        lines.push(Line::default());
        lines.push(title(format!(
            "{:<NAME$}{:<12}{:>9}{:>10}{:>9}{:>10}{:>8}",
            "model", "tenant", "blocks", "bytes", "sessions", "tokens/s", "hits"
        )));
        lines.extend(view.namespaces.iter().map(namespace));
    }
    if let Some((_, Ok(router))) = &view.router {
        lines.extend(workers(router));
    }
    lines
}

fn head(view: &View) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from(vec![
        bold("kelvin top".into()),
        plain_span(format!("  store {}, up {}", view.store, uptime(view.uptime))),
    ])];
    if let Some((url, router)) = &view.router {
        lines.push(match router {
            Ok(router) => {
                let color = match router.status.as_str() {
                    "ok" => Color::Green,
                    "degraded" => Color::Yellow,
                    _ => Color::Red,
                };
                let rest =
                    format!(", {} requests in flight, store {}", router.requests_in_flight, router.store);
                Line::from(vec![
                    plain_span(format!("router {url} ")),
                    colored(router.status.clone(), color),
                    plain_span(rest),
                ])
            }
            Err(why) => Line::from(colored(format!("router {url} does not answer: {why}"), Color::Red)),
        });
    }
    if let Some(trouble) = &view.trouble {
        lines.push(Line::from(colored(
            format!("the store does not answer, these are old: {trouble}"),
            Color::Red,
        )));
    }
    lines
}

fn hits(view: &View) -> Vec<Line<'static>> {
    let Some(ratio) = view.hit_ratio else {
        return vec![Line::from(vec![label("hits"), plain_span("nothing was asked for yet".into())])];
    };
    let mut bar = vec![label("hits")];
    let mut left = BAR;
    for (name, share) in &view.hits {
        let cells = ((share * BAR as f64).round() as usize).min(left);
        left -= cells;
        bar.push(colored(tier_cell(name).repeat(cells), tier_color(name)));
    }
    bar.push(plain_span("·".repeat(left)));
    bar.push(bold(format!(" {}", percent(ratio))));
    bar.push(plain_span(format!(" of {} tokens", count(view.requested_tokens))));
    if let Some(now) = view.hit_ratio_now {
        bar.push(plain_span(format!(", now {}", percent(now))));
    }
    let shares = view.hits.iter().map(|(name, share)| (name.clone(), *share, tier_color(name)));
    let missed = ("missed".to_owned(), (1.0 - ratio).max(0.0), Color::Reset);
    let mut lines = vec![Line::from(bar), shared("by tier", shares.chain([missed]))];
    if !view.misses.is_empty() {
        let misses = view.misses.iter().take(5).map(|(name, share)| (name.clone(), *share, Color::Reset));
        lines.push(shared("missed", misses));
    }
    if !view.trend.is_empty() {
        let trend: String = view.trend.iter().map(|&ratio| level(ratio)).collect();
        lines.push(Line::from(vec![label("trend"), colored(trend, Color::Cyan)]));
    }
    lines
}

fn shared(name: &str, shares: impl IntoIterator<Item = (String, f64, Color)>) -> Line<'static> {
    let mut spans = vec![label(name)];
    for (index, (name, share, color)) in shares.into_iter().enumerate() {
        spans.push(plain_span(if index == 0 { String::new() } else { "  ".into() }));
        spans.push(colored(format!("{name} "), color));
        spans.push(plain_span(percent(share)));
    }
    Line::from(spans)
}

fn tier(row: &TierRow) -> Line<'static> {
    let size = |bytes| Size(bytes).to_string();
    let share = row.used_bytes as f64 / row.capacity_bytes.max(1) as f64;
    let fill = match row.capacity_bytes {
        0 => format!("{:<17}", "-"),
        _ => format!("{}{:>7}", bar(share), percent(share)),
    };
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".into(), |rate| size(rate as u64));
    let health = match row.health.as_str() {
        "ok" | "healthy" | "-" => Color::Reset,
        _ => Color::Yellow,
    };
    Line::from(vec![
        colored(format!("{:<8}", row.name), tier_color(&row.name)),
        colored(fill, tier_color(&row.name)),
        plain_span(format!(
            "{:>9}{:>9}{:>10}{:>10}{:>6}  ",
            size(row.used_bytes),
            if row.capacity_bytes == 0 { "-".into() } else { size(row.capacity_bytes) },
            rate(row.rates.map(|rates| rates.0)),
            rate(row.rates.map(|rates| rates.1)),
            row.queued
        )),
        colored(row.health.clone(), health),
    ])
}

fn counts(view: &View) -> Vec<Line<'static>> {
    let counts = &view.counts;
    let mut lines = vec![
        Line::from(vec![
            label("now"),
            plain_span(format!(
                "{} sessions, {} read leases, {} write leases, {} pins of {}",
                counts.sessions,
                counts.read_leases,
                counts.write_leases,
                counts.pins,
                Size(counts.pinned_bytes)
            )),
        ]),
        Line::from(vec![
            label("so far"),
            plain_span(format!(
                "{} evictions, {} leases expired, ",
                count(counts.evictions),
                counts.leases_expired
            )),
            colored(
                format!("{} faults", counts.faults),
                if counts.faults > 0 { Color::Red } else { Color::Reset },
            ),
        ]),
    ];
    let reads = view.tiers.iter().filter_map(|tier| Some((&tier.name, tier.mebibyte_read?)));
    let reads: Vec<_> = reads.map(|(name, took)| format!("{name} {took:.1?}")).collect();
    if !reads.is_empty() {
        lines.push(Line::from(vec![label("a MiB in"), plain_span(reads.join("  "))]));
    }
    if !view.memory.is_empty() {
        let memory = view.memory.iter().map(|(name, share)| (name.clone(), *share, Color::Reset));
        lines.push(shared("DRAM", memory));
    }
    if !view.ghosts.is_empty() {
        let ghosts = view.ghosts.iter().take(6).map(|(name, share)| {
            (name.clone(), *share, if *name == view.policy { Color::Green } else { Color::Reset })
        });
        lines.push(shared("ghosts", ghosts));
    }
    lines
}

fn namespace(row: &NamespaceRow) -> Line<'static> {
    Line::from(format!(
        "{:<NAME$}{:<12}{:>9}{:>10}{:>9}{:>10}{:>8}",
        cut(&row.model, NAME - 2),
        cut(&row.tenant, 10),
        count(row.blocks),
        Size(row.bytes).to_string(),
        row.sessions,
        row.tokens_rate.map_or_else(|| "-".into(), |rate| count(rate as u64)),
        row.hit_ratio.map_or_else(|| "-".into(), percent)
    ))
}

fn workers(router: &Router) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if !router.workers.is_empty() {
        lines.push(Line::default());
        lines.push(title(format!(
            "{:<NAME$}{:<10}{:<10}{:>8}{:>8}{:>10}{:>11}",
            "worker", "role", "state", "running", "waiting", "pending", "prefill/s"
        )));
        lines.extend(router.workers.iter().map(worker));
    }
    if !router.backends.is_empty() {
        lines.push(Line::default());
        lines.push(title(format!(
            "{:<NAME$}{:<9}{:<10}{:<10}{:>9}{:>9}{:>11}",
            "backend", "state", "circuit", "cache", "running", "pending", "prefill/s"
        )));
        lines.extend(router.backends.iter().map(backend));
    }
    lines
}

fn worker(worker: &Worker) -> Line<'static> {
    Line::from(vec![
        plain_span(format!(
            "{:<NAME$}{:<10}",
            cut(&worker.name, NAME - 2),
            worker.role.as_deref().unwrap_or("-")
        )),
        colored(format!("{:<10}", worker.state), state_color(&worker.state)),
        plain_span(format!(
            "{:>8}{:>8}{:>10}{:>11}",
            format!("{}/{}", worker.running, worker.slots),
            worker.waiting,
            count(worker.pending_prompt_tokens),
            count(worker.prefill_tokens_per_second as u64)
        )),
    ])
}

fn backend(backend: &Backend) -> Line<'static> {
    Line::from(vec![
        plain_span(format!("{:<NAME$}", cut(backend.url.trim_start_matches("http://"), NAME - 2))),
        colored(format!("{:<9}", backend.state), state_color(&backend.state)),
        plain_span(format!(
            "{:<10}{:<10}{:>9}{:>9}{:>11}",
            backend.circuit,
            backend.cache,
            backend.in_flight,
            count(backend.queued_tokens),
            backend.tokens_per_second.map_or_else(|| "-".into(), |rate| count(rate as u64))
        )),
    ])
}

fn label(name: &str) -> Span<'static> {
    Span::styled(format!("{name:<10}"), Style::new().add_modifier(Modifier::DIM))
}

fn title(text: String) -> Line<'static> {
    Line::styled(text, Style::new().add_modifier(Modifier::BOLD))
}

fn bold(text: String) -> Span<'static> {
    Span::styled(text, Style::new().add_modifier(Modifier::BOLD))
}

fn plain_span(text: String) -> Span<'static> {
    Span::raw(text)
}

fn colored(text: String, color: Color) -> Span<'static> {
    Span::styled(text, Style::new().fg(color))
}

/// Told apart without colors, too.
fn tier_cell(name: &str) -> &'static str {
    match name {
        "dram" | "hbm" => "█",
        "nvme" => "▓",
        _ => "▒",
    }
}

fn tier_color(name: &str) -> Color {
    match name {
        "hbm" => Color::Magenta,
        "dram" => Color::Blue,
        "nvme" => Color::Green,
        _ => Color::Yellow,
    }
}

fn state_color(state: &str) -> Color {
    match state {
        "ready" => Color::Green,
        "starting" => Color::Yellow,
        _ => Color::Red,
    }
}

fn bar(share: f64) -> String {
    let cells = ((share * FILL as f64).round() as usize).min(FILL);
    format!("{}{}", "█".repeat(cells), "░".repeat(FILL - cells))
}

fn level(ratio: f64) -> char {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    LEVELS[((ratio * 7.0).round() as usize).min(7)]
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// `950`, `12.3k`, `4.0M`.
fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{:.1}k", number as f64 / 1e3),
        _ => format!("{:.1}M", number as f64 / 1e6),
    }
}

/// At most so many characters, with a sign that some are left out.
fn cut(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests;
