//! Toy engines: servers that speak OpenAI's API and answer at once.

use std::net::SocketAddr;

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::wire::Inbox;

/// The model's name.
pub(super) const MODEL: &str = "toy";

/// Some of them, until dropped.
pub(super) struct Backends {
    addresses: Vec<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Backends {
    /// `tokens` are streamed where a stream is asked for.
    pub(super) async fn start(count: usize, tokens: u64) -> anyhow::Result<Self> {
        let (mut addresses, mut tasks) = (Vec::new(), JoinSet::new());
        let answers: &'static Answers = Box::leak(Box::new(Answers::new(tokens)));
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?);
            tasks.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        // A client that goes away ends its connection, whatever it was at.
                        let _ = serve(stream, answers).await;
                    });
                }
            });
        }
        Ok(Self { addresses, _tasks: tasks })
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.addresses.iter().map(|address| format!("http://{address}")).collect()
    }
}

/// Ready to be written.
struct Answers {
    models: Vec<u8>,
    whole: Vec<u8>,
    /// Head, then one piece a token, then the end.
    stream: Vec<Vec<u8>>,
}

impl Answers {
    fn new(tokens: u64) -> Self {
        let json = |body: String| {
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes()
        };
        let models = format!(
            r#"{{"object":"list","data":[{{"id":"{MODEL}","object":"model","owned_by":"bench","max_model_len":1000000}}],"model_path":"{MODEL}","tokenizer_path":"","is_generation":true,"served_model_name":"{MODEL}"}}"#
        );
        let whole = format!(
            r#"{{"id":"chatcmpl-0","object":"chat.completion","created":1,"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"ok"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":1024,"completion_tokens":1,"total_tokens":1025}}}}"#
        );
        let chunk = |data: &str| format!("{:x}\r\n{data}\r\n", data.len()).into_bytes();
        let mut stream = vec![
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_vec(),
        ];
        for _ in 0..tokens {
            stream.push(chunk(&format!(
                "data: {{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" token\"}},\"finish_reason\":null}}]}}\n\n"
            )));
        }
        stream.push([chunk("data: [DONE]\n\n"), b"0\r\n\r\n".to_vec()].concat());
        Self { models: json(models), whole: json(whole), stream }
    }
}

async fn serve(mut stream: TcpStream, answers: &Answers) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut inbox = Inbox::default();
    while let Some(head) = inbox.head(&mut stream).await? {
        if head.length.is_some() || head.is_chunked {
            inbox.body(&mut stream, &head).await?;
        }
        if head.start.starts_with("GET ") {
            stream.write_all(&answers.models).await?;
        } else if answers.stream.len() > 2 {
            // Each token by itself, as an engine writes them.
            for piece in &answers.stream {
                stream.write_all(piece).await?;
                tokio::task::yield_now().await;
            }
        } else {
            stream.write_all(&answers.whole).await?;
        }
    }
    Ok(())
}
