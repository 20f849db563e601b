//! The operator's token, with which the page of an admin listener may change something.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, ensure};

#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct AdminToken {
    /// Bearer token with which the page may pin, prefetch, evict and name prefixes, beside the store's own; without
    /// either the page only shows. Better given by the variable than by the flag [default: none]
    #[arg(long, env = "KELVIN_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    admin_token: Option<String>,

    /// File with that token in it [default: none]
    #[arg(long, env = "KELVIN_ADMIN_TOKEN_FILE", value_name = "PATH", conflicts_with = "admin_token")]
    admin_token_file: Option<PathBuf>,
}

impl AdminToken {
    /// The token, if there is one.
    pub(crate) fn read(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.admin_token_file else { return Ok(self.admin_token.clone()) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the admin token from {}", path.display()))?;
        let token = text.trim();
        ensure!(!token.is_empty(), "the file of the admin token, {}, is empty", path.display());
        Ok(Some(token.to_owned()))
    }

    /// The environment of a child that is to have it too: flags could be read in the list of processes.
    pub(crate) fn env(&self) -> Vec<(OsString, OsString)> {
        match (&self.admin_token_file, &self.admin_token) {
            (Some(path), _) => vec![("KELVIN_ADMIN_TOKEN_FILE".into(), path.into())],
            (None, Some(token)) => vec![("KELVIN_ADMIN_TOKEN".into(), token.into())],
            (None, None) => Vec::new(),
        }
    }
}
