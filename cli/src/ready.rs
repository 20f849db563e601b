//! The one line a process prints on stdout when it is ready.

use std::io::Write;

use serde_json::{Map, Value};

/// Prints `{"event":"ready","service":SERVICE,...}`. A supervisor waits for it; a stdout that nobody reads
/// is no reason to fail.
pub(crate) fn say(service: &str, facts: impl IntoIterator<Item = (&'static str, Option<String>)>) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{}", line(service, facts));
    let _ = stdout.flush();
}

fn line(service: &str, facts: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Value {
    let mut line = Map::new();
    line.insert("event".into(), "ready".into());
    line.insert("service".into(), service.into());
    for (name, value) in facts {
        if let Some(value) = value {
            line.insert(name.into(), value.into());
        }
    }
    line.into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn absent_facts_are_left_out() {
        let line = super::line("store", [("listen", Some("127.0.0.1:1".into())), ("socket", None)]);
        assert_eq!(line.to_string(), r#"{"event":"ready","service":"store","listen":"127.0.0.1:1"}"#);
    }
}
