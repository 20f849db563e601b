//! One engine, step by step.

use super::*;

/// Nothing is outside, or so much.
struct Elsewhere(Option<Load>);

impl Outside for Elsewhere {
    fn load(&mut self, _: usize, _: &[u64], _: usize, _: Nanos) -> Option<Load> {
        self.0.take()
    }
}

/// Runs until nothing is left to do; when each request had its first token and its last.
fn run(engine: &mut Engine) -> [Vec<(u32, Nanos)>; 2] {
    let (mut now, mut first, mut done) = (0, Vec::new(), Vec::new());
    loop {
        let Some(pass) = engine.start(now, &mut Elsewhere(None)) else { return [first, done] };
        now = pass.ends_at;
        let mut outcomes = Vec::new();
        engine.finish(&mut outcomes);
        for outcome in outcomes {
            match outcome {
                Outcome::FirstToken { job } => first.push((job, now)),
                Outcome::Done { job } => done.push((job, now)),
                Outcome::Admitted { .. } => unreachable!("that is of the pass"),
            }
        }
    }
}

fn keys(from: u64, tokens: u64) -> Rc<[u64]> {
    (from..from + tokens / ENGINE_BLOCK_TOKENS).collect()
}

#[test]
fn a_long_prompt_takes_several_passes() {
    let mut engine = Engine::new(0, 1_000);
    engine.arrive(7, keys(1, 10_000), 10_000, 1);
    let pass = engine.start(0, &mut Elsewhere(None)).unwrap();
    assert_eq!(pass.ends_at, nanos(prefill_ms(8_192)));
    assert_eq!(pass.admitted, [Outcome::Admitted { job: 7, device_tokens: 0, loaded_tokens: 0 }]);
    let mut outcomes = Vec::new();
    engine.finish(&mut outcomes);
    assert_eq!(outcomes, []);
    let began = pass.ends_at;
    let pass = engine.start(began, &mut Elsewhere(None)).unwrap();
    // The rest of it, and the first token.
    assert_eq!(pass.ends_at - began, nanos(prefill_ms(1_808)) + nanos(decode_ms(157, 1_000)));
    engine.finish(&mut outcomes);
    assert_eq!(outcomes, [Outcome::FirstToken { job: 7 }, Outcome::Done { job: 7 }]);
    assert!(engine.start(pass.ends_at, &mut Elsewhere(None)).is_none());
    assert_eq!(engine.cache.active(), 0);
}

#[test]
fn prompts_that_wait_share_a_pass_and_its_blocks() {
    let mut engine = Engine::new(0, 1_000);
    engine.arrive(1, keys(1, 640), 650, 5);
    engine.arrive(2, keys(1, 640), 700, 5);
    let pass = engine.start(0, &mut Elsewhere(None)).unwrap();
    // The second finds the blocks of the first, which are computed in the same pass.
    assert_eq!(pass.prefill_tokens, 650 + 60);
    assert_eq!(pass.admitted[1], Outcome::Admitted { job: 2, device_tokens: 640, loaded_tokens: 0 });
    assert_eq!(engine.take_stored(), [Stored { keys: keys(1, 640), range: 0..10, is_new: true }]);
    assert_eq!(engine.cache.active(), 12);
}

#[test]
fn the_youngest_makes_room_and_comes_back() {
    // Each begins with two blocks and needs three.
    let mut engine = Engine::new(0, 4);
    engine.arrive(1, keys(1, 100), 100, 60);
    engine.arrive(2, keys(11, 100), 100, 60);
    let [first, done] = run(&mut engine);
    assert_eq!(engine.preemptions(), 1);
    assert_eq!(first.iter().map(|(job, _)| *job).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(done.iter().map(|(job, _)| *job).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((engine.cache.active(), engine.cache.available()), (0, 4));
}

#[test]
fn one_that_loads_lets_others_pass() {
    let mut engine = Engine::new(0, 1_000);
    engine.arrive(1, keys(1, 640), 640, 1);
    engine.arrive(2, keys(101, 640), 640, 1);
    let mut outside = Elsewhere(Some(Load { blocks: 9, ticket: 5 }));
    let pass = engine.start(0, &mut outside).unwrap();
    assert_eq!(pass.admitted, [Outcome::Admitted { job: 2, device_tokens: 0, loaded_tokens: 0 }]);
    // It comes in the midst of a pass, and is found by the next.
    engine.loaded(5, 1_000);
    engine.finish(&mut Vec::new());
    engine.take_stored();
    let pass = engine.start(pass.ends_at, &mut outside).unwrap();
    assert_eq!(pass.admitted, [Outcome::Admitted { job: 1, device_tokens: 0, loaded_tokens: 576 }]);
    assert_eq!(pass.prefill_tokens, 64);
    let stored = engine.take_stored();
    assert_eq!(stored[0], Stored { keys: keys(1, 640), range: 0..9, is_new: false });
    assert_eq!(stored[1].run(), (Some(9), &[10][..]));
}

#[test]
fn the_last_token_is_always_computed() {
    let mut engine = Engine::new(0, 100);
    for job in 0..2 {
        engine.arrive(job, keys(1, 128), 128, 1);
        let pass = engine.start(0, &mut Elsewhere(None)).unwrap();
        assert_eq!(pass.prefill_tokens, if job == 0 { 128 } else { 64 });
        engine.finish(&mut Vec::new());
    }
}
