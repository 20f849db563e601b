//! As much of HTTP/1.1 as a load needs, so that what is measured is the router: heads, bodies of a known length, and
//! chunks.

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
};

const HEAD_MAX: usize = 64 << 10;

/// Bytes that came and were not used yet.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    at: usize,
}

/// A message's head.
pub(super) struct Head {
    /// The first line.
    pub(super) start: String,
    pub(super) length: Option<usize>,
    pub(super) is_chunked: bool,
}

impl Inbox {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    async fn more(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<usize> {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        Ok(stream.read_buf(&mut self.bytes).await?)
    }

    /// The next head; `None` when the connection ends before one begins.
    pub(super) async fn head(&mut self, stream: &mut TcpStream) -> anyhow::Result<Option<Head>> {
        let end = loop {
            if let Some(end) = find(self.rest(), b"\r\n\r\n") {
                break end;
            }
            ensure!(self.rest().len() < HEAD_MAX, "a head has no end");
            if self.more(stream).await? == 0 {
                ensure!(self.rest().is_empty(), "the connection ended within a head");
                return Ok(None);
            }
        };
        let text = std::str::from_utf8(&self.rest()[..end]).context("read a head")?;
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let (mut length, mut is_chunked) = (None, false);
        for line in lines {
            let (name, value) = line.split_once(':').context("a header without a colon")?;
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse().context("read a length")?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                is_chunked = value.trim().eq_ignore_ascii_case("chunked");
            }
        }
        self.at += end + 4;
        Ok(Some(Head { start, length, is_chunked }))
    }

    /// Reads a body and drops it; returns its bytes and how many newlines it had.
    pub(super) async fn body(&mut self, stream: &mut TcpStream, head: &Head) -> anyhow::Result<usize> {
        if let Some(length) = head.length {
            self.take(stream, length).await?;
            return Ok(length);
        }
        if !head.is_chunked {
            bail!("an answer without a length");
        }
        let mut total = 0;
        loop {
            let end = loop {
                if let Some(end) = find(self.rest(), b"\r\n") {
                    break end;
                }
                ensure!(self.more(stream).await? > 0, "the connection ended within a chunk");
            };
            let size = std::str::from_utf8(&self.rest()[..end])?;
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
            self.at += end + 2;
            self.take(stream, size + 2).await?;
            total += size;
            if size == 0 {
                return Ok(total);
            }
        }
    }

    async fn take(&mut self, stream: &mut TcpStream, mut bytes: usize) -> anyhow::Result<()> {
        loop {
            let here = self.rest().len().min(bytes);
            self.at += here;
            bytes -= here;
            if bytes == 0 {
                return Ok(());
            }
            ensure!(self.more(stream).await? > 0, "the connection ended within a body");
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
