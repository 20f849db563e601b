//! The toy engines' KV events, as vLLM publishes them: with them a router knows their caches by tokens, and hashes each
//! prompt's. They tell of one block that no prompt has, again and again, for whoever subscribes late.

use std::time::Duration;

use rmpv::Value;
use tokio::{task::JoinSet, time::sleep};
use zeromq::{Endpoint, PubSocket, Socket, SocketSend, ZmqMessage};

/// Tokens of a block, as vLLM has them.
const BLOCK_TOKENS: u64 = 16;
const PERIOD: Duration = Duration::from_millis(200);

/// Publishers, until dropped.
pub(super) struct Events {
    endpoints: Vec<String>,
    _tasks: JoinSet<()>,
}

impl Events {
    pub(super) async fn start(count: usize) -> anyhow::Result<Self> {
        let (mut endpoints, mut tasks) = (Vec::new(), JoinSet::new());
        for _ in 0..count {
            let mut socket = PubSocket::new();
            let endpoint: Endpoint = socket.bind("tcp://127.0.0.1:0").await?;
            endpoints.push(endpoint.to_string());
            tasks.spawn(async move {
                for number in 0_u64.. {
                    if socket.send(message(number)).await.is_err() {
                        return;
                    }
                    sleep(PERIOD).await;
                }
            });
        }
        Ok(Self { endpoints, _tasks: tasks })
    }

    /// Where a router subscribes, in order.
    pub(super) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }
}

/// Topic, number, and a batch of one event.
fn message(number: u64) -> ZmqMessage {
    let event = Value::Map(vec![
        ("type".into(), "BlockStored".into()),
        ("block_hashes".into(), Value::Array(vec![1.into()])),
        ("parent_block_hash".into(), Value::Nil),
        ("token_ids".into(), Value::Array((0..BLOCK_TOKENS).map(Value::from).collect())),
        ("block_size".into(), BLOCK_TOKENS.into()),
        ("medium".into(), "GPU".into()),
    ]);
    let mut payload = Vec::new();
    rmpv::encode::write_value(&mut payload, &Value::Array(vec![0.5.into(), Value::Array(vec![event])]))
        .expect("memory takes everything");
    let mut message = ZmqMessage::from(payload);
    message.push_front(number.to_be_bytes().to_vec().into());
    message.push_front(Default::default());
    message
}
