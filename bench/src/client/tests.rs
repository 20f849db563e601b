//! The client against streams as servers send them, whole, in pieces and broken.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const ROLE: &str = r#"data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
const ONE: &str = r#"data: {"choices":[{"delta":{"content":"one"},"finish_reason":null}]}"#;
const TWO: &str = r#"data: {"choices":[{"delta":{"content":" two"},"finish_reason":null}]}"#;
const END: &str = r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}"#;
const DONE: &str = "data: [DONE]";

fn stream(events: &[&str]) -> String {
    events.iter().map(|event| format!("{event}\n\n")).collect()
}

#[test]
fn a_stream_in_pieces() {
    let begin = Instant::now();
    let text = stream(&[ROLE, ": a comment", ONE, TWO, END, USAGE, DONE]);
    for size in [1, 7, 1000] {
        let mut reader = Reader::new(begin);
        let mut done = false;
        for (index, piece) in text.as_bytes().chunks(size).enumerate() {
            done |= reader.read(piece, begin + Duration::from_millis(index as u64)).unwrap();
        }
        assert!(done);
        let completed = reader.finish().unwrap();
        assert_eq!(completed.text, "one two");
        assert_eq!(completed.gaps.len(), 1);
        assert_eq!(completed.usage, Usage { prompt_tokens: 9, cached_tokens: 8, completion_tokens: 2 });
    }
}

#[test]
fn times_are_those_of_the_text() {
    let begin = Instant::now();
    let at = |millis| begin + Duration::from_millis(millis);
    let mut reader = Reader::new(begin);
    for (event, millis) in [(ROLE, 1), (ONE, 10), (TWO, 14), (END, 20), (USAGE, 21), (DONE, 22)] {
        reader.read(format!("{event}\n\n").as_bytes(), at(millis)).unwrap();
    }
    let completed = reader.finish().unwrap();
    assert_eq!(completed.first, Duration::from_millis(10));
    assert_eq!(completed.gaps, [Duration::from_millis(4)]);
}

#[test]
fn an_empty_answer_is_first_heard_of_at_its_end() {
    let begin = Instant::now();
    let mut reader = Reader::new(begin);
    let at = begin + Duration::from_millis(5);
    assert!(reader.read(stream(&[ROLE, END, USAGE, DONE]).as_bytes(), at).unwrap());
    assert_eq!(reader.finish().unwrap().first, Duration::from_millis(5));
}

#[test]
fn broken_streams() {
    let read = |text: &str| {
        let mut reader = Reader::new(Instant::now());
        reader.read(text.as_bytes(), Instant::now()).and_then(|_| reader.finish()).unwrap_err()
    };
    let error = "data: {\"error\":{\"message\":\"the worker died\"}}\n";
    assert_eq!(read(error), Failure::Event("the worker died".into()));
    assert!(matches!(read("data: {\n"), Failure::Garbled(_)));
    assert!(matches!(read(&stream(&[ONE, DONE])), Failure::Garbled(_)));
    assert!(matches!(read(&"x".repeat(LINE_BYTES_MAX + 1)), Failure::Garbled(_)));
}

/// Answers every connection with one of the given texts, in turn, and closes it.
async fn serve(answers: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            // A request of this test fits one segment or ends in the JSON's brace.
            let mut request = Vec::new();
            while !request.ends_with(b"}") && !request.ends_with(b"\r\n\r\n") {
                socket.read_buf(&mut request).await.unwrap();
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn over_http() {
    let url = serve(vec![
        http("200 OK", r#"{"data":[{"id":"toy"}]}"#),
        http("200 OK", &stream(&[ROLE, ONE, TWO, END, USAGE, DONE])),
        http("400 Bad Request", r#"{"error":{"message":"too long"}}"#),
        http("200 OK", &stream(&[ROLE, ONE])),
    ])
    .await;
    let client = Client::connect(&url).await.unwrap();
    assert_eq!(client.model, "toy");
    let ask = || async { client.chat(&[Message::new("user", "hello")], 4).await };
    assert_eq!(ask().await.unwrap().text, "one two");
    assert_eq!(ask().await.unwrap_err(), Failure::Refused(400, "too long".into()));
    assert_eq!(ask().await.unwrap_err(), Failure::Cut);
}

#[tokio::test]
async fn nobody_there() {
    let error = Client::connect("http://127.0.0.1:1").await.unwrap_err();
    assert!(format!("{error:#}").contains("no OpenAI endpoint answers at http://127.0.0.1:1"), "{error:#}");
}
