//! A GET over HTTP, as thin as can be: what Kelvin asks of its own pages.
//!
//! HTTP/1.0: the server closes after the answer, so that there are no chunks to put together and no connection to keep.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer longer than this is not read on.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Longest time for an answer.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Status and body of what `url` (`http://HOST:PORT`) has at `path`.
pub(crate) async fn get(url: &str, path: &str) -> Result<(u16, String), String> {
    let host = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let exchange = async {
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(TIME_MAX, exchange)
        .await
        .map_err(|_| format!("GET {path}: no answer within {TIME_MAX:?}"))?
        .map_err(|error| format!("GET {path}: {error}"))?;
    parse(&String::from_utf8_lossy(&answer)).map_err(|why| format!("GET {path}: {why}"))
}

fn parse(answer: &str) -> Result<(u16, String), &'static str> {
    let no_http = "the answer is no HTTP";
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(no_http)?;
    let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(no_http)?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body() {
        assert_eq!(parse("HTTP/1.0 200 OK\r\na: b\r\n\r\n{}"), Ok((200, "{}".to_owned())));
        assert_eq!(parse("HTTP/1.1 503 Service Unavailable\r\n\r\n"), Ok((503, String::new())));
        assert!(parse("").is_err() && parse("SSH-2.0\r\n\r\n").is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = get(&format!("http://{address}"), "/health").await.unwrap_err();
        assert!(error.starts_with("GET /health: "), "{error}");
    }
}
