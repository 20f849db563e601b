//! What is seen on a terminal of 80 by 24, and as plain text.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kelvin_proto::kv::v1::{
    MissRatioPoint, MissReason, MissStats, NamespaceStats, PinStats, PolicyStats, StatsResponse, Tier,
    TierHealth, TierHits, TierStats,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::top::sample::Sample;

fn stats(turn: u64) -> StatsResponse {
    let policies = [("density", 0.625), ("lru", 0.55)];
    let policies = policies.map(|(policy, hit_rate)| PolicyStats { policy: policy.into(), hit_rate });
    StatsResponse {
        incarnation: 7,
        uptime_ms: 306_000,
        tiers: vec![
            TierStats {
                tier: Tier::Dram.into(),
                capacity_bytes: 1 << 30,
                used_bytes: 768 << 20,
                blocks: 3000,
                policy: "density".into(),
                policies: policies.into(),
                ..Default::default()
            },
            TierStats {
                tier: Tier::Nvme.into(),
                capacity_bytes: 200 << 30,
                used_bytes: 50 << 30,
                blocks: 120_000,
                read_bytes: turn * (64 << 20),
                written_bytes: turn * (32 << 20),
                reads_queued: 4,
                health: TierHealth::Degraded.into(),
                ..Default::default()
            },
        ],
        namespaces: vec![NamespaceStats {
            namespace_id: 1,
            tenant: "default".into(),
            model: "a-model-with-a-very-long-name-indeed".into(),
            blocks: 123_000,
            bytes: 51 << 30,
            block_tokens: 16,
            match_blocks: 1000 * turn,
            hit_blocks: 500 * turn + 125 * (turn - 1),
            hits: vec![
                TierHits { tier: Tier::Dram.into(), blocks: 500 * turn },
                TierHits { tier: Tier::Nvme.into(), blocks: 125 * (turn - 1) },
            ],
            sessions: 3,
            ..Default::default()
        }],
        sessions: 3,
        read_leases: 12,
        write_leases: 1,
        evictions: 12_345,
        conflicts: 1,
        shm_leased_bytes: turn << 30,
        misses: vec![
            MissStats { reason: MissReason::Evicted.into(), blocks: 100 },
            MissStats { reason: MissReason::NeverStored.into(), blocks: 300 },
        ],
        pins: Some(PinStats { soft: 2, hard: 1, bytes: 8 << 20, ..Default::default() }),
        ..Default::default()
    }
}

fn sample(turn: u64, at: Instant) -> Sample {
    Sample { taken: at, store: "http://127.0.0.1:7440".into(), stats: stats(turn), router: None }
}

fn view() -> View {
    let began = Instant::now();
    let (before, mut now) = (sample(1, began), sample(2, began + Duration::from_secs(2)));
    let worker = Worker {
        name: "decode-0".into(),
        role: Some("decode".into()),
        state: "ready".into(),
        running: 2,
        slots: 4,
        pending_prompt_tokens: 512,
        prefill_tokens_per_second: 171.0,
        ..Default::default()
    };
    let backend = Backend { url: "http://127.0.0.1:8001".into(), state: "lost".into(), ..Default::default() };
    let router = Router {
        status: "degraded".into(),
        store: "connected".into(),
        requests_in_flight: 2,
        workers: vec![worker],
        backends: vec![backend],
    };
    now.router = Some(("http://127.0.0.1:8080".into(), Ok(router)));
    View::of(&now, Some(&before), &VecDeque::from([0.1, 0.5, 0.9]))
}

fn on_terminal(view: &View, scroll: u16) -> (String, u16) {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let mut kept = 0;
    terminal.draw(|frame| kept = screen(view, scroll, frame.area(), frame.buffer_mut())).unwrap();
    (plain(terminal.backend().buffer()), kept)
}

#[test]
fn a_terminal_of_80_by_24() {
    let expected = "\
kelvin top  store http://127.0.0.1:7440, up 5m 6s
router http://127.0.0.1:8080 degraded, 2 requests in flight, store connected

hits      ████████████▓▓·········· 56.2% of 32.0k tokens, now 62.5%
by tier   dram 50.0%  nvme 6.2%  missed 43.8%
missed    never stored 75.0%  evicted 25.0%
trend     ▂▅▇

tier    fill                  used capacity    read/s written/s queue  health
dram    ████████░░  75.0%   768MiB     1GiB    512MiB        0B     0  -
nvme    ███░░░░░░░  25.0%    50GiB   200GiB     32MiB     16MiB     4  degraded

now       3 sessions, 12 read leases, 1 write leases, 3 pins of 8MiB
so far    12.3k evictions, 0 leases expired, 1 faults
ghosts    density 62.5%  lru 55.0%

model                 tenant         blocks     bytes sessions  tokens/s    hits
a-model-with-a-very…  default        123.0k     51GiB        3      8000   56.2%

worker                role      state      running waiting   pending  prefill/s
decode-0              decode    ready          2/4       0       512        171

backend               state    circuit   cache       running  pending  prefill/s
127.0.0.1:8001        lost                                 0        0          -
";
    let (found, _) = on_terminal(&view(), 0);
    assert_eq!(found, expected, "\n{found}");
}

#[test]
fn what_does_not_fit_is_scrolled_to() {
    let view = view();
    let mut view = view;
    view.namespaces = vec![view.namespaces[0].clone(); 4];
    let (top, kept) = on_terminal(&view, 0);
    assert_eq!(kept, 0);
    assert!(top.contains("more lines, arrows scroll") && !top.contains("127.0.0.1:8001"), "{top}");
    let (end, kept) = on_terminal(&view, u16::MAX);
    assert!(kept > 0 && end.contains("127.0.0.1:8001") && !end.contains("kelvin top"), "{end}");
}

#[test]
fn a_terminal_without_room_is_borne() {
    let mut buffer = Buffer::empty(Rect::new(0, 0, 0, 0));
    assert_eq!(screen(&view(), 3, buffer.area, &mut buffer), 3);
    let mut narrow = Buffer::empty(Rect::new(0, 0, 3, 1));
    screen(&view(), 0, narrow.area, &mut narrow);
}

#[test]
fn plain_text_has_all_of_it() {
    let text = text(&view(), 100);
    for words in ["decode-0", "2/4", "a-model-with-a-very…", "8000", "degraded", "backend", "lost"] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn what_reads_take_and_what_more_memory_would_hit() {
    let mut now = sample(1, Instant::now());
    now.stats.tiers[1].mebibyte_read_us = 1_640;
    let point = |mebibytes: u64, miss_ratio| MissRatioPoint { capacity_bytes: mebibytes << 20, miss_ratio };
    now.stats.namespaces[0].miss_ratio = vec![point(512, 0.6), point(2048, 0.45), point(4096, 0.25)];
    let text = text(&View::of(&now, None, &VecDeque::new()), 100);
    assert!(text.contains("a MiB in  nvme 1.6ms\n"), "{text}");
    assert!(text.contains("DRAM      as now 40.0%  twice 55.0%  4 times 75.0%  8 times 75.0%\n"), "{text}");
}

#[test]
fn a_store_that_was_asked_for_nothing_has_no_rates() {
    let mut fresh = sample(1, Instant::now());
    fresh.stats = StatsResponse { tiers: stats(1).tiers, ..Default::default() };
    let text = text(&View::of(&fresh, None, &VecDeque::new()), 100);
    assert!(text.contains("nothing was asked for yet"), "{text}");
    assert!(!text.contains("NaN"), "{text}");
}

#[test]
fn a_store_that_was_started_anew_counts_from_nothing() {
    let began = Instant::now();
    let before = sample(9, began);
    let mut now = sample(1, began + Duration::from_secs(2));
    now.stats.incarnation = 8;
    let view = View::of(&now, Some(&before), &VecDeque::new());
    assert!(view.hit_ratio_now.is_none() && view.tiers.iter().all(|tier| tier.rates.is_none()));
}

#[test]
fn what_does_not_answer_is_said() {
    let mut view = view();
    view.trouble = Some("no answer within 6s".into());
    view.router = Some(("http://127.0.0.1:8080".into(), Err("refused".into())));
    let (text, _) = on_terminal(&view, 0);
    assert!(text.contains("the store does not answer, these are old: no answer within 6s"), "{text}");
    assert!(text.contains("router http://127.0.0.1:8080 does not answer: refused"), "{text}");
}
