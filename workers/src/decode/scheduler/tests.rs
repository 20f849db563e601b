use kelvin_proto::worker::v1;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::*;
use crate::{
    EngineOptions, ModelSource, ToyOptions,
    decode::sequence::{Final, Pipes, SealedBlock},
    engine::open,
    sampling::SamplingPlan,
    testing::Reference,
};

const BLOCK_TOKENS: usize = 4;

fn options() -> EngineOptions {
    EngineOptions {
        block_tokens: BLOCK_TOKENS as u32,
        chunk_tokens: 8,
        slots: 2,
        context_tokens: 64,
        cells: Some(128),
        threads: 1,
    }
}

fn toy() -> ModelSource {
    ModelSource::Toy(ToyOptions { token_bytes: 16, ..Default::default() })
}

/// A scheduler and its client's ends.
struct Rig {
    scheduler: Scheduler,
    load: Arc<LoadMeter>,
}

struct Client {
    output: mpsc::Receiver<Result<v1::GenerateResponse, Status>>,
    sealed: mpsc::Receiver<SealedBlock>,
    finish: oneshot::Receiver<Final>,
    start: Option<oneshot::Receiver<()>>,
    stop: CancellationToken,
}

struct Bytes(Result<Vec<u8>, String>);

impl BlockBytes for Bytes {
    fn verified(&self) -> Result<&[u8], String> {
        self.0.as_deref().map_err(Clone::clone)
    }
}

impl Rig {
    fn new(options: EngineOptions) -> Self {
        let load = Arc::new(LoadMeter::new(options.slots));
        let engine = open(&toy(), &options).unwrap();
        Self { scheduler: Scheduler::new(engine, options.chunk_tokens, load.clone()), load }
    }

    fn submit(&mut self, key: u64, prompt: &[u32], tokens_max: u32, import: bool) -> Client {
        self.submit_with(key, prompt, tokens_max, import, 64)
    }

    fn submit_with(
        &mut self,
        key: u64,
        prompt: &[u32],
        tokens_max: u32,
        import: bool,
        room: usize,
    ) -> Client {
        self.resume_with(key, prompt, 0, tokens_max, import, room)
    }

    /// A job of whose tokens the last ones are another worker's output.
    fn resume_with(
        &mut self,
        key: u64,
        prompt: &[u32],
        generated_tokens: usize,
        tokens_max: u32,
        import: bool,
        room: usize,
    ) -> Client {
        let (output_sender, output) = mpsc::channel(room);
        let (sealed_sender, sealed) = mpsc::channel(room);
        let (finish_sender, finish) = oneshot::channel();
        let (start_sender, start) = oneshot::channel();
        let stop = CancellationToken::new();
        let pipes = Pipes {
            output: output_sender,
            start_import: import.then_some(start_sender),
            stop_import: Some(stop.clone().drop_guard()),
            sealed: sealed_sender,
            finish: finish_sender,
        };
        let plan = SamplingPlan::check(None, None, tokens_max, crate::TOY_VOCAB_TOKENS).unwrap();
        let job = Job {
            key,
            prompt: prompt.to_vec(),
            generated_tokens,
            expected_tokens: 0,
            tokens_max,
            stop_tokens: Vec::new(),
            plan,
            constraint: None,
            pipes,
        };
        self.scheduler.handle(Command::Submit(Box::new(job)));
        Client { output, sealed, finish, start: import.then_some(start), stop }
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.scheduler.turn());
    }

    fn running(&self) -> (u32, u32) {
        let load = self.load.snapshot();
        (load.running, load.waiting)
    }
}

impl Client {
    /// Streamed tokens and the end.
    fn end(&mut self) -> (Vec<u32>, Result<(v1::FinishReason, v1::Usage), Refusal>) {
        let mut tokens = Vec::new();
        while let Ok(message) = self.output.try_recv() {
            tokens.extend(message.unwrap().tokens.into_iter().map(|token| token.token));
        }
        let end = self.finish.try_recv().expect("it ended");
        tokens.extend(end.tokens.into_iter().map(|token| token.token));
        (tokens, end.outcome)
    }

    fn sealed(&mut self) -> Vec<SealedBlock> {
        std::iter::from_fn(|| self.sealed.try_recv().ok()).collect()
    }
}

fn expected(prompt: &[u32], tokens_max: usize) -> Vec<u32> {
    Reference::new(&toy(), &options()).unwrap().turn(prompt, tokens_max, &[]).unwrap().tokens
}

fn prompt(count: u32, seed: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 31 + seed) % 256).collect()
}

#[test]
fn sequences_share_steps_and_answer_as_alone() {
    let mut rig = Rig::new(options());
    let mut first = rig.submit(1, &prompt(21, 1), 6, false);
    let mut second = rig.submit(2, &prompt(3, 2), 9, false);
    rig.turns(1);
    assert_eq!(rig.running(), (2, 0));
    rig.turns(12);
    let (tokens, outcome) = first.end();
    assert_eq!(tokens, expected(&prompt(21, 1), 6));
    let (finish, usage) = outcome.unwrap();
    assert_eq!(finish, v1::FinishReason::Length);
    assert_eq!((usage.prompt_tokens, usage.generated_tokens), (21, 6));
    assert_eq!((usage.evaluated_tokens, usage.imported_tokens), (21, 0));
    assert_eq!(second.end().0, expected(&prompt(3, 2), 9));
    assert_eq!(rig.running(), (0, 0));
    assert_eq!(rig.load.snapshot().finished, 2);
}

#[test]
fn every_complete_block_is_sealed_in_order() {
    let mut rig = Rig::new(options());
    let mut client = rig.submit(1, &prompt(10, 1), 7, false);
    rig.turns(20);
    let (tokens, _) = client.end();
    let all = [prompt(10, 1), tokens].concat();
    let sealed = client.sealed();
    // The 17th token was sampled, but never evaluated.
    assert_eq!(sealed.iter().map(|block| block.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let known: Vec<u32> = sealed.iter().flat_map(|block| block.tokens.clone()).collect();
    assert_eq!(known, all[..16]);
    // The blocks go on exactly where they were sealed.
    let mut engine = open(&toy(), &options()).unwrap();
    sealed.iter().for_each(|block| engine.import_block(0, &block.bytes).unwrap());
    engine.evaluate(&[BatchItem { sequence: 0, tokens: &all[16..], logits: true }]).unwrap();
    let next = crate::sampling::argmax(engine.logits(0)).unwrap();
    assert_eq!(next, expected(&prompt(10, 1), 8)[7]);
}

#[test]
fn a_full_committer_delays_seals_and_a_gone_one_ends_them() {
    let mut rig = Rig::new(options());
    let mut client = rig.submit_with(1, &prompt(21, 1), 20, false, 1);
    rig.turns(3);
    assert_eq!(client.sealed().len(), 1);
    rig.turns(1);
    assert_eq!(client.sealed().iter().map(|block| block.index).collect::<Vec<_>>(), [1]);
    client.sealed.close();
    rig.turns(30);
    let streamed = client.end().0;
    assert_eq!(streamed, expected(&prompt(21, 1), 20), "a slow client loses no token");
}

#[test]
fn imported_blocks_are_not_evaluated_nor_sealed_again() {
    let mut rig = Rig::new(options());
    let mut donor = rig.submit(1, &prompt(13, 5), 1, false);
    rig.turns(4);
    let blocks = donor.sealed();
    assert_eq!(blocks.len(), 3);
    let mut client = rig.submit(2, &prompt(13, 5), 4, true);
    rig.turns(3);
    assert!(client.start.take().unwrap().try_recv().is_ok(), "the import began with the admission");
    assert_eq!(rig.running(), (1, 0));
    for block in blocks {
        let block = Box::new(Bytes(Ok(block.bytes)));
        rig.scheduler.handle(Command::Block { key: 2, block });
    }
    assert!(!client.stop.is_cancelled());
    rig.scheduler.handle(Command::ImportEnd { key: 2 });
    assert!(client.stop.is_cancelled());
    rig.turns(6);
    let (tokens, outcome) = client.end();
    assert_eq!(tokens, expected(&prompt(13, 5), 4));
    let (_, usage) = outcome.unwrap();
    assert_eq!((usage.imported_tokens, usage.evaluated_tokens), (12, 1));
    assert_eq!(client.sealed().iter().map(|block| block.index).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_bad_block_ends_the_import_and_the_rest_is_evaluated() {
    let bad = [Bytes(Err("checksum mismatch".to_owned())), Bytes(Ok(vec![1, 2, 3]))];
    for bad in bad {
        let mut rig = Rig::new(options());
        let mut client = rig.submit(1, &prompt(13, 5), 4, true);
        rig.turns(1);
        rig.scheduler.handle(Command::Block { key: 1, block: Box::new(bad) });
        assert!(client.stop.is_cancelled());
        let late = Box::new(Bytes(Ok(vec![0; 64])));
        rig.scheduler.handle(Command::Block { key: 1, block: late });
        rig.turns(10);
        let (tokens, outcome) = client.end();
        assert_eq!(tokens, expected(&prompt(13, 5), 4));
        assert_eq!(outcome.unwrap().1.imported_tokens, 0);
    }
}

#[test]
fn a_client_that_goes_frees_its_slot_within_a_step() {
    let mut rig = Rig::new(options());
    let first = rig.submit(1, &prompt(5, 1), 50, false);
    let _second = rig.submit(2, &prompt(5, 2), 50, false);
    let mut third = rig.submit(3, &prompt(5, 3), 5, false);
    let fourth = rig.submit(4, &prompt(5, 4), 5, false);
    rig.turns(2);
    assert_eq!(rig.running(), (2, 2));
    drop(fourth);
    drop(first);
    rig.turns(1);
    assert_eq!(rig.running(), (2, 0), "the third took the place of the first, the fourth is forgotten");
    rig.turns(10);
    assert_eq!(third.end().0, expected(&prompt(5, 3), 5));
}

#[test]
fn admission_waits_for_cells_in_order() {
    let mut rig = Rig::new(EngineOptions { cells: Some(64), ..options() });
    let mut first = rig.submit(1, &prompt(30, 1), 10, false);
    let mut second = rig.submit(2, &prompt(30, 2), 10, false);
    let mut third = rig.submit(3, &prompt(2, 3), 2, false);
    rig.turns(1);
    assert_eq!(rig.running(), (1, 2), "a small one does not overtake");
    assert_eq!(rig.load.snapshot().pending_prompt_tokens, 22 + 32);
    rig.turns(60);
    for (client, count, seed, tokens) in
        [(&mut first, 30, 1, 10), (&mut second, 30, 2, 10), (&mut third, 2, 3, 2)]
    {
        assert_eq!(client.end().0, expected(&prompt(count, seed), tokens));
    }
}

#[test]
fn a_stop_token_ends_without_being_sent() {
    let mut rig = Rig::new(options());
    let stop = expected(&prompt(5, 1), 8)[3];
    let mut client = rig.submit(1, &prompt(5, 1), 8, false);
    // The job is in the queue still: give it its stop token there.
    rig.scheduler.waiting[0].stop_tokens = vec![stop];
    rig.turns(10);
    let (tokens, outcome) = client.end();
    let before: Vec<u32> =
        expected(&prompt(5, 1), 8).into_iter().take_while(|&token| token != stop).collect();
    assert_eq!(tokens, before);
    assert_eq!(outcome.unwrap().0, v1::FinishReason::Stop);
}

#[test]
fn an_engine_error_ends_its_batch_with_a_refusal() {
    let mut rig = Rig::new(options());
    let mut client = rig.submit(1, &[9, 999, 9], 8, false);
    rig.turns(1);
    let refusal = client.end().1.unwrap_err();
    assert_eq!(refusal.reason, Reason::EngineFailed);
    assert!(refusal.message.contains("token 999"), "{refusal}");
    let mut next = rig.submit(2, &prompt(5, 1), 2, false);
    rig.turns(4);
    assert_eq!(next.end().0, expected(&prompt(5, 1), 2), "the next one works");
}

#[test]
fn stopping_refuses_all_there_are_and_all_that_come() {
    let mut rig = Rig::new(options());
    let mut clients: Vec<Client> = (0..3).map(|key| rig.submit(key, &prompt(5, 1), 50, false)).collect();
    rig.turns(2);
    rig.scheduler.handle(Command::Stop);
    clients.push(rig.submit(9, &prompt(5, 1), 50, false));
    for client in &mut clients {
        assert_eq!(client.end().1.unwrap_err().reason, Reason::Unavailable);
    }
    rig.turns(1);
    assert_eq!(rig.running(), (0, 0));
}

#[test]
fn prompts_take_turns() {
    let mut rig = Rig::new(options());
    let _first = rig.submit(1, &prompt(41, 1), 2, false);
    let _second = rig.submit(2, &prompt(41, 2), 2, false);
    rig.turns(4);
    let evaluated: Vec<usize> = rig.scheduler.running.iter().map(|sequence| sequence.evaluated).collect();
    assert_eq!(evaluated, [16, 16], "neither starves");
}

#[test]
fn a_short_rest_of_anothers_output_is_evaluated_as_it_was_there() {
    let whole = expected(&prompt(21, 1), 20);
    // Steps to the first new token: three chunks and a tail for the prompt and one for each token behind it, or
    // chunks for all.
    for (generated, steps) in [(1, 4 + 1), (8, 4 + 8), (9, 5)] {
        let mut rig = Rig::new(options());
        let known = [&prompt(21, 1), &whole[..generated]].concat();
        let mut client = rig.resume_with(1, &known, generated, (20 - generated) as u32, true, 64);
        rig.turns(1);
        rig.scheduler.handle(Command::ImportEnd { key: 1 });
        rig.turns(steps - 1);
        assert!(client.output.try_recv().is_err(), "{generated}: less than {steps} steps");
        rig.turns(1);
        assert_eq!(client.output.len(), 1, "{generated}: {steps} steps");
        rig.turns(20);
        let (tokens, outcome) = client.end();
        assert_eq!(tokens, whole[generated..], "{generated}");
        let usage = outcome.unwrap().1;
        assert_eq!(usage.generated_tokens as usize, 20 - generated);
        assert_eq!(usage.evaluated_tokens as usize, 21 + generated);
        let sealed: Vec<u32> = client.sealed().iter().flat_map(|block| block.tokens.clone()).collect();
        assert_eq!(sealed, [prompt(21, 1), whole.clone()].concat()[..40]);
    }
}
