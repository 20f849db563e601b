//! An engine's server that does what a script says, byte by byte: good answers and bad ones.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What a backend does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Do {
    /// Answers with this status and body.
    Answer(u16, String),
    /// Streams these pieces; ends the stream properly.
    Stream(Vec<String>),
    /// Streams these pieces and closes the connection in the middle of it.
    HalfStream(Vec<String>),
    /// Streams these pieces and says no more.
    StreamAndHang(Vec<String>),
    /// Says nothing.
    Hang,
    /// Closes the connection.
    Close,
    /// Writes these bytes and closes.
    Raw(Vec<u8>),
}

#[derive(Default)]
struct Shared {
    script: Mutex<VecDeque<Do>>,
    /// Without a script.
    usual: Mutex<Option<Do>>,
    requests: Mutex<Vec<(String, String)>>,
    healthy: AtomicUsize,
    delay_ms: AtomicUsize,
    gone: AtomicUsize,
    /// What it wants to hear.
    key: Mutex<Option<&'static str>>,
    model: String,
}

/// A server on loopback; closed when dropped.
pub(crate) struct TestBackend {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for TestBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer's body that says `text`.
pub(crate) fn completion(text: &str) -> String {
    serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}},
    })
    .to_string()
}

/// An event that says `text`.
pub(crate) fn event(text: &str) -> String {
    let delta = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}],
    });
    format!("data: {delta}\n\n")
}

pub(crate) const DONE: &str = "data: [DONE]\n\n";

impl TestBackend {
    pub(crate) async fn start(name: &str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), name).await
    }

    pub(crate) async fn at(address: SocketAddr, name: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().unwrap();
        let shared =
            Arc::new(Shared { model: "m".into(), healthy: AtomicUsize::new(200), ..Shared::default() });
        *shared.usual.lock() = Some(Do::Answer(200, completion(name)));
        let kept = shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = kept.clone();
                connections.spawn(async move {
                    let _ = serve(stream, &shared).await;
                });
            }
        });
        Self { address, shared, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests get these, one each.
    pub(crate) fn then(&self, acts: impl IntoIterator<Item = Do>) {
        self.shared.script.lock().extend(acts);
    }

    /// All others get this.
    pub(crate) fn always(&self, act: Do) {
        *self.shared.usual.lock() = Some(act);
    }

    /// How long every answer takes: what is learnt of a server that answers at once is noise.
    pub(crate) fn takes(self, milliseconds: usize) -> Self {
        self.shared.delay_ms.store(milliseconds, Ordering::SeqCst);
        self
    }

    /// What it wants to hear from now on, before it says anything but how it does.
    pub(crate) fn wants(&self, authorization: &'static str) {
        *self.shared.key.lock() = Some(authorization);
    }

    /// What `/health` answers.
    pub(crate) fn healthy(&self, status: usize) {
        self.shared.healthy.store(status, Ordering::SeqCst);
    }

    /// Heads and bodies of the requests for answers.
    pub(crate) fn requests(&self) -> Vec<(String, String)> {
        self.shared.requests.lock().clone()
    }

    /// Clients that went away before their answer was whole.
    pub(crate) fn gone(&self) -> usize {
        self.shared.gone.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8(bytes.drain(..end).collect()).expect("a head is text");
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        while bytes.len() < length.unwrap_or(0usize) {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        let body = String::from_utf8(bytes.drain(..length.unwrap_or(0)).collect()).expect("a body is text");
        if head.starts_with("GET /health") {
            let status = shared.healthy.load(Ordering::SeqCst);
            stream.write_all(whole(status as u16, "{}").as_bytes()).await?;
            continue;
        }
        let key = *shared.key.lock();
        if key.is_some_and(|key| !head.contains(&format!("authorization: {key}\r\n"))) {
            stream.write_all(whole(401, "{}").as_bytes()).await?;
            continue;
        }
        if head.starts_with("GET ") {
            let models = serde_json::json!({"object": "list", "data": [{"id": shared.model, "object": "model", "owned_by": "test", "max_model_len": 4096}]});
            stream.write_all(whole(200, &models.to_string()).as_bytes()).await?;
            continue;
        }
        shared.requests.lock().push((head, body));
        let delay = shared.delay_ms.load(Ordering::SeqCst);
        tokio::time::sleep(std::time::Duration::from_millis(delay as u64)).await;
        let act = shared
            .script
            .lock()
            .pop_front()
            .or_else(|| shared.usual.lock().clone())
            .expect("something to do");
        if !act_out(&mut stream, act, shared).await? {
            return Ok(());
        }
    }
}

fn whole(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns whether the connection goes on.
async fn act_out(stream: &mut TcpStream, act: Do, shared: &Shared) -> std::io::Result<bool> {
    let (pieces, end) = match act {
        Do::Answer(status, body) => {
            stream.write_all(whole(status, &body).as_bytes()).await?;
            return Ok(true);
        }
        Do::Close => return Ok(false),
        Do::Raw(bytes) => {
            stream.write_all(&bytes).await?;
            return Ok(false);
        }
        Do::Hang => {
            wait_for_the_end(stream, shared).await;
            return Ok(false);
        }
        Do::Stream(pieces) => (pieces, Some(true)),
        Do::HalfStream(pieces) => (pieces, Some(false)),
        Do::StreamAndHang(pieces) => (pieces, None),
    };
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await?;
    for piece in pieces {
        stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await?;
    }
    match end {
        Some(true) => stream.write_all(b"0\r\n\r\n").await.map(|()| true),
        Some(false) => Ok(false),
        None => {
            wait_for_the_end(stream, shared).await;
            Ok(false)
        }
    }
}

async fn wait_for_the_end(stream: &mut TcpStream, shared: &Shared) {
    let mut byte = [0];
    let _ = stream.read(&mut byte).await;
    shared.gone.fetch_add(1, Ordering::SeqCst);
}
