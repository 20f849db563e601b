//! Many clients at once: a closed loop, where each waits for its answer, or an open loop, where requests
//! arrive by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rand::rngs::SmallRng;
use tokio::sync::{Mutex, Semaphore};

use crate::client::{Client, Message};
use crate::prompts::{Conversation, arrival_gap};
use crate::recorder::Recorder;

/// Most conversations under way in an open loop. Further ones wait, and their wait counts as theirs.
const OUTSTANDING_MAX: usize = 512;

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// How requests come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loop {
    /// So many clients, each with one conversation after the other.
    Closed { clients: usize },
    /// Conversations begin at so many a second, as a Poisson process.
    Open { rate: f64 },
}

/// What a load gave.
pub(crate) struct Loaded {
    pub(crate) recorder: Recorder,
    pub(crate) elapsed: Duration,
}

struct Shared {
    client: Client,
    tokens_max: u32,
    recorder: Mutex<Recorder>,
    requests: usize,
}

/// Has all conversations and measures every turn.
pub(crate) async fn run(
    client: &Client,
    conversations: Vec<Conversation>,
    tokens_max: u32,
    how: Loop,
    arrivals: &mut SmallRng,
) -> Loaded {
    let requests = conversations.iter().map(|conversation| conversation.questions.len()).sum();
    let shared =
        Shared { client: client.clone(), tokens_max, recorder: Mutex::new(Recorder::new()), requests };
    let shared = Arc::new(shared);
    let begin = Instant::now();
    let progress = tokio::spawn(progress(shared.clone()));
    match how {
        Loop::Closed { clients } => closed(&shared, &conversations, clients).await,
        Loop::Open { rate } => open(&shared, conversations, rate, arrivals).await,
    }
    let elapsed = begin.elapsed();
    progress.abort();
    let recorder = shared.recorder.lock().await.clone();
    Loaded { recorder, elapsed }
}

async fn closed(shared: &Shared, conversations: &[Conversation], clients: usize) {
    let next = AtomicUsize::new(0);
    let client = || async {
        while let Some(conversation) = conversations.get(next.fetch_add(1, Ordering::Relaxed)) {
            converse(shared, conversation, Instant::now()).await;
        }
    };
    join_all((0..clients).map(|_| client())).await;
}

async fn open(shared: &Arc<Shared>, conversations: Vec<Conversation>, rate: f64, arrivals: &mut SmallRng) {
    let slots = Arc::new(Semaphore::new(OUTSTANDING_MAX));
    let mut due = Instant::now();
    let mut running = Vec::new();
    for conversation in conversations {
        due += Duration::from_secs_f64(arrival_gap(arrivals, rate));
        tokio::time::sleep_until(due.into()).await;
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let shared = shared.clone();
        running.push(tokio::spawn(async move {
            converse(&shared, &conversation, due).await;
            drop(slot);
        }));
    }
    join_all(running).await;
}

/// One conversation, turn by turn; a turn that fails ends it. The first turn was due at `due`.
async fn converse(shared: &Shared, conversation: &Conversation, due: Instant) {
    let mut messages = vec![Message::new("system", conversation.prefix.clone())];
    let mut late = due.elapsed();
    for question in &conversation.questions {
        messages.push(Message::new("user", question.clone()));
        let outcome = shared.client.chat(&messages, shared.tokens_max).await;
        shared.recorder.lock().await.record(&outcome, late);
        late = Duration::ZERO;
        match outcome {
            Ok(completed) => messages.push(Message::new("assistant", completed.text)),
            Err(_) => return,
        }
    }
}

async fn progress(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(PROGRESS).await;
        let (done, errors) = {
            let recorder = shared.recorder.lock().await;
            (recorder.requests, recorder.errors_total())
        };
        eprintln!("{done} of {} requests, {errors} errors", shared.requests);
    }
}
