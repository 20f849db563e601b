//! Backends in a file: `{"backends": [{"url": "http://HOST:PORT", ...}, ...]}`, read again when it changes.
//!
//! A file that cannot be read, or makes no sense, changes nothing: what it said last stays.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{
        roster::{BACKENDS_MAX, Roster, Source},
        spec::BackendSpec,
    },
    metrics::Metrics,
};

/// Between two looks. The file is small, and reading it costs less than a watch is worth.
const EVERY: Duration = Duration::from_millis(500);
const BYTES_MAX: u64 = 4 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    backends: Vec<BackendSpec>,
}

/// What the file says now.
pub(crate) fn read(path: &std::path::Path) -> Result<Vec<BackendSpec>, String> {
    let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes > BYTES_MAX {
        return Err(format!("it has {bytes} bytes, but at most {BYTES_MAX} are read"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let file: File = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if file.backends.len() > BACKENDS_MAX {
        return Err(format!(
            "it names {} backends, but at most {BACKENDS_MAX} are allowed",
            file.backends.len()
        ));
    }
    file.backends.into_iter().map(|spec| spec.checked().map_err(|error| error.to_string())).collect()
}

/// Keeps `roster` as the file says, until `stop`.
pub(crate) async fn follow(
    path: PathBuf,
    roster: Arc<Roster>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let looks = async {
        let mut last: Option<Result<Vec<BackendSpec>, String>> = None;
        loop {
            let at = path.clone();
            let said = tokio::task::spawn_blocking(move || read(&at))
                .await
                .unwrap_or_else(|error| Err(error.to_string()));
            let found = said.as_ref().map(Vec::len).map_err(Clone::clone);
            metrics.backend.looked(Source::File.name(), found.as_ref().ok().copied());
            roster.seen(Source::File, found);
            if last.as_ref() != Some(&said) {
                match &said {
                    Ok(specs) => roster.name(Source::File, specs.clone()),
                    Err(why) => {
                        tracing::error!(path = %path.display(), why, "the file of backends is left as it was read last");
                    }
                }
                last = Some(said);
            }
            sleep(EVERY).await;
        }
    };
    tokio::select! {
        () = looks => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_checked_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backends.json");
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        assert_eq!(said(r#"{"backends": [{"url": "http://127.0.0.1:1"}]}"#).unwrap().len(), 1);
        assert_eq!(said(r#"{"backends": []}"#).unwrap().len(), 0);
        for (text, part) in [
            ("", "EOF"),
            (r#"{"backends": [{"url": "127.0.0.1"}]}"#, "http://HOST:PORT"),
            (r#"{"backends": [{"url": "http://127.0.0.1:1", "rôle": "both"}]}"#, "unknown field"),
            (r#"{"backend": []}"#, "unknown field"),
        ] {
            let why = said(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
    }
}
