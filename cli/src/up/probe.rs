//! Whether a child still answers: gRPC health for store and workers, HTTP for the router.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// An answer longer than this is not read on.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A gRPC server's health service; the connection is made on demand, and again after a restart.
#[derive(Clone)]
pub(super) struct Health(HealthClient<Channel>);

impl Health {
    pub(super) fn new(url: &str) -> Result<Health, String> {
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| error.to_string())?;
        Ok(Health(HealthClient::new(endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy())))
    }

    pub(super) async fn check(mut self) -> Result<(), String> {
        let answer = self.0.check(HealthCheckRequest::default()).await;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok(()),
            Ok(other) => Err(format!("health is {}", other.as_str_name())),
            Err(status) => Err(format!("{}: {}", status.code(), status.message())),
        }
    }
}

/// Body of a GET that was answered with 200. HTTP/1.0: the server closes after the answer, so that there are
/// no chunks to put together and no connection to keep.
pub(super) async fn http_get(address: SocketAddr, path: &str) -> Result<String, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = exchange.await.map_err(|error| format!("GET {path}: {error}"))?;
    body(&String::from_utf8_lossy(&answer)).map_err(|status| format!("GET {path}: {status}"))
}

fn body(answer: &str) -> Result<String, String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is no HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    match status.split_whitespace().nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(status.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_is_good() {
        assert_eq!(body("HTTP/1.0 200 OK\r\na: b\r\n\r\n{}").as_deref(), Ok("{}"));
        assert_eq!(
            body("HTTP/1.1 503 Service Unavailable\r\n\r\n{}").as_deref(),
            Err(&"HTTP/1.1 503 Service Unavailable".to_owned())
        );
        assert!(body("").is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(http_get(address, "/health").await.unwrap_err().starts_with("GET /health: "));
        let error = Health::new(&format!("http://{address}")).unwrap().check().await.unwrap_err();
        assert!(!error.is_empty());
    }
}
