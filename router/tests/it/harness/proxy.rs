//! A way to a server that can be told to hold back what the server says.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

pub(crate) struct Proxy {
    listen: SocketAddr,
    held: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let listen = listener.local_addr().expect("an address");
        let (held, _) = watch::channel(false);
        let holds = held.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(target).await else { continue };
                let ((mut asked, answers), (said, mut asks)) = (client.into_split(), server.into_split());
                tokio::spawn(async move { copy(&mut asked, &mut asks).await });
                tokio::spawn(pass(said, answers, holds.subscribe()));
            }
        });
        Self { listen, held }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// What the server says waits here, or goes on.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut held: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if held.wait_for(|held| !held).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
