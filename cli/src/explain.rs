//! `kelvin explain`: what became of one request, and why the cache did not have more of it.

use std::fmt::Write;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::{http, values};

/// Say of a recent request what the cache had of its prompt, who served it, and why the rest was missing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The request: its x-request-id, or the id of its answer (chatcmpl-...)
    #[arg(value_name = "ID", value_parser = id)]
    id: String,

    /// The admin listener of the router that had it: its --admin-listen, or what "kelvin up" prints
    #[arg(long, env = "KELVIN_ROUTER_ADMIN", value_name = "URL", value_parser = values::endpoint)]
    router: String,

    /// Print what the router said, as JSON
    #[arg(long)]
    json: bool,
}

/// Longer ids are not kept by routers.
const ID_BYTES_MAX: usize = 160;

fn id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > ID_BYTES_MAX {
        return Err(format!("an id has 1 to {ID_BYTES_MAX} characters"));
    }
    Ok(text.to_owned())
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let ask = async |path: &str| {
        http::get(&args.router, path).await.map_err(anyhow::Error::msg).with_context(|| {
            format!("ask the router's admin listener at {} (--router names another)", args.router)
        })
    };
    // A store has recent requests as well, by other ids and of other fields.
    let (status, body) = ask("/ui/api/now").await?;
    is_router(&args.router, status, &body)?;
    let (status, body) = ask(&format!("/ui/api/requests/{}", encoded(&args.id))).await?;
    if status == 200 && args.json {
        return values::print(&format!("{}\n", body.trim_end()));
    }
    values::print(&answer(&args.id, &args.router, status, &body)?)
}

/// A request as the router remembers it; what is not known is absent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    id: String,
    unique: String,
    route: String,
    age_ms: f64,
    status: Option<u16>,
    model: Option<String>,
    worker: Option<String>,
    mode: Option<String>,
    prefill: Option<String>,
    prompt_tokens: Option<u64>,
    matched_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    missed_tokens: Option<u64>,
    generated_tokens: Option<u64>,
    ttft_ms: Option<f64>,
    duration_ms: Option<f64>,
    done: bool,
    namespace_id: Option<String>,
    first_missing_hash: Option<String>,
    why: Option<String>,
    explain: Option<Reason>,
}

/// Why a block is not there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reason {
    reason: String,
    tier: Option<String>,
    age_ms: Option<f64>,
    words: String,
}

/// Whether this is what a router's admin listener says of itself.
fn is_router(url: &str, status: u16, body: &str) -> anyhow::Result<()> {
    let value = serde_json::from_str::<serde_json::Value>(body).unwrap_or_default();
    match (status, value["kind"].as_str()) {
        (200, Some("router")) => Ok(()),
        (200, Some(other)) => {
            bail!("{url} is the admin listener of a {other}; give that of the router that had the request")
        }
        _ => {
            bail!("{url} is no admin listener of a router (status {status}); give its --admin-listen address")
        }
    }
}

fn answer(id: &str, router: &str, status: u16, body: &str) -> anyhow::Result<String> {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(body) else {
        bail!("{router} is no admin listener of a router (status {status}); give its --admin-listen address");
    };
    match status {
        200 => {
            let request = serde_json::from_value(value).context("read the router's answer")?;
            Ok(text(&request))
        }
        404 if value["error"].is_string() => bail!(
            "the router at {router} does not know the request {id:?}: it remembers the last 1024 since its start"
        ),
        404 => bail!("{router} is no admin listener of a router; give its --admin-listen address"),
        _ => bail!("the router at {router} answers {status}: {}", value["error"].as_str().unwrap_or(body)),
    }
}

fn text(request: &Request) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_text(&mut text, request);
    text
}

fn write_text(out: &mut String, request: &Request) -> std::fmt::Result {
    let tokens = |tokens: Option<u64>| tokens.map_or_else(|| "?".to_owned(), |tokens| tokens.to_string());
    let name = if request.id == request.unique || request.unique.is_empty() {
        request.id.clone()
    } else {
        format!("{} ({})", request.id, request.unique)
    };
    let state = match (request.status, request.done) {
        (Some(status), true) => format!("answered with {status}"),
        (Some(status), false) => format!("being answered with {status}"),
        (None, _) => "in work".to_owned(),
    };
    writeln!(out, "request   {name}")?;
    writeln!(out, "          {}, {state}, {} ago", request.route, time(request.age_ms))?;
    if let Some(model) = &request.model {
        writeln!(out, "model     {model}")?;
    }
    match (&request.worker, request.mode.as_deref(), &request.prefill) {
        (Some(worker), Some("remote"), Some(prefill)) => {
            writeln!(out, "decided   {worker} generates, {prefill} evaluates the prompt")?;
        }
        (Some(worker), Some("local"), _) => {
            writeln!(out, "decided   {worker} evaluates what is missing and generates")?;
        }
        (Some(worker), _, _) => writeln!(out, "decided   {worker} serves it")?,
        (None, _, _) => writeln!(out, "decided   nothing yet, or it was refused before that")?,
    }
    writeln!(out, "prompt    {} tokens", tokens(request.prompt_tokens))?;
    writeln!(
        out,
        "cache     {} expected, {} used, {} missed",
        tokens(request.matched_tokens),
        tokens(request.cached_tokens),
        tokens(request.missed_tokens)
    )?;
    let mut took = Vec::new();
    took.extend(request.generated_tokens.map(|tokens| format!("{tokens} tokens")));
    took.extend(request.ttft_ms.map(|ms| format!("the first after {}", time(ms))));
    took.extend(request.duration_ms.map(|ms| format!("{} in all", time(ms))));
    if !took.is_empty() {
        writeln!(out, "answer    {}", took.join(", "))?;
    }
    match (&request.first_missing_hash, &request.explain) {
        (None, _) => writeln!(out, "missing   {}", why(request.why.as_deref())),
        (Some(hash), None) => {
            writeln!(out, "missing   from block {hash} on; the store does not say why")?;
            let of =
                request.namespace_id.as_deref().map(|id| format!(" --namespace {id}")).unwrap_or_default();
            writeln!(out, "          (kelvin store explain {hash}{of})")
        }
        (Some(hash), Some(reason)) => {
            let tier = reason.tier.as_deref().map(|tier| format!(" ({tier})")).unwrap_or_default();
            let age = reason.age_ms.map(|ms| format!(", {} ago", time(ms))).unwrap_or_default();
            writeln!(out, "missing   from block {hash} on: {}{tier}{age}", reason.reason.replace('_', " "))?;
            if reason.words.is_empty() { Ok(()) } else { writeln!(out, "          {}", reason.words) }
        }
    }
}

/// Why no missing block is named.
fn why(word: Option<&str>) -> &'static str {
    match word {
        Some("all_stored") => "no whole block of it",
        Some("filling") => "no whole block of it: those that were not stored were being filled just then",
        Some("too_short") => "not asked for: it has no whole block before its last token",
        Some("no_store") => "not known: this router asks no store",
        Some("store_away") => {
            "not known: the store was away, or did not answer in time, so nothing counted as cached"
        }
        Some("other_engine") => "not known: another engine served it, which does not tell",
        _ => "not known",
    }
}

/// `850 us`, `123.4 ms`, `5.2 s`, `3 min`.
fn time(ms: f64) -> String {
    match ms {
        ..1.0 => format!("{:.0} us", ms * 1e3),
        ..1000.0 => format!("{ms:.1} ms"),
        ..120_000.0 => format!("{:.1} s", ms / 1e3),
        _ => format!("{:.0} min", ms / 60e3),
    }
}

/// An id as a part of a path: what is not plain is written as its bytes.
fn encoded(id: &str) -> String {
    let mut text = String::new();
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(byte.into()),
            _ => {
                // Writing to a string does not fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"id":"mine-7","unique":"00ab","route":"/v1/chat/completions","age_ms":5200,"status":200,
        "model":"toy","worker":"decode-0","mode":"remote","prefill":"prefill-0","prompt_tokens":546,
        "matched_tokens":512,"cached_tokens":496,"missed_tokens":50,"generated_tokens":32,"ttft_ms":123.44,
        "duration_ms":4567,"done":true,"namespace_id":"17","first_missing_hash":"00112233445566778899aabbccddeeff",
        "explain":{"hash":"00112233445566778899aabbccddeeff","reason":"tier_failed","tier":"nvme","age_ms":90000,
        "pinned":false,"words":"NVMe could not be read."},"something_new":1}"#;

    #[test]
    fn a_request_is_told_from_end_to_end() {
        let expected = "\
request   mine-7 (00ab)
          /v1/chat/completions, answered with 200, 5.2 s ago
model     toy
decided   decode-0 generates, prefill-0 evaluates the prompt
prompt    546 tokens
cache     512 expected, 496 used, 50 missed
answer    32 tokens, the first after 123.4 ms, 4.6 s in all
missing   from block 00112233445566778899aabbccddeeff on: tier failed (nvme), 90.0 s ago
          NVMe could not be read.
";
        assert_eq!(answer("mine-7", "http://r:1", 200, BODY).unwrap(), expected);
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let body = r#"{"id":"a","unique":"a","route":"/v1/completions","age_ms":0.4,"status":null,"model":null,
            "worker":null,"mode":null,"prefill":null,"done":false,"first_missing_hash":null,"explain":null}"#;
        let text = answer("a", "http://r:1", 200, body).unwrap();
        assert!(text.starts_with("request   a\n          /v1/completions, in work, 400 us ago\n"), "{text}");
        assert!(
            text.contains("? tokens") && text.contains("missing   not known\n") && !text.contains("model"),
            "{text}"
        );
        let body = r#"{"first_missing_hash":"00","namespace_id":"17","explain":null}"#;
        let text = answer("a", "http://r:1", 200, body).unwrap();
        assert!(text.contains("kelvin store explain 00 --namespace 17"), "{text}");
    }

    #[test]
    fn what_names_no_missing_block_says_why() {
        for (word, words) in [
            ("all_stored", "missing   no whole block of it\n"),
            ("filling", "being filled"),
            ("too_short", "no whole block before its last token"),
            ("no_store", "asks no store"),
            ("store_away", "did not answer in time"),
            ("other_engine", "another engine served it"),
        ] {
            let body = format!(r#"{{"first_missing_hash":null,"why":"{word}"}}"#);
            let text = answer("a", "http://r:1", 200, &body).unwrap();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn only_a_router_is_asked() {
        assert!(is_router("http://r:1", 200, r#"{"kind":"router"}"#).is_ok());
        for (status, body, words) in [
            (200, r#"{"kind":"store"}"#, "the admin listener of a store"),
            (404, r#"{"error":{"message":"no such route"}}"#, "--admin-listen"),
            (200, "<html>", "--admin-listen"),
        ] {
            let error = is_router("http://r:1", status, body).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn failures_say_what_to_change() {
        for (status, body, words) in [
            (404, r#"{"error":"no such request"}"#, "it remembers the last 1024"),
            (404, r#"{"error":{"message":"no such route"}}"#, "--admin-listen"),
            (404, "", "--admin-listen"),
            (500, r#"{"error":"broken"}"#, "answers 500: broken"),
        ] {
            let error = answer("x", "http://r:1", status, body).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn ids_are_parts_of_a_path() {
        assert_eq!(encoded("chatcmpl-00ab"), "chatcmpl-00ab");
        assert_eq!(encoded("a/b?c é"), "a%2Fb%3Fc%20%C3%A9");
        assert!(id("").is_err() && id(&"x".repeat(161)).is_err());
    }
}
