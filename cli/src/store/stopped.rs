//! Which store is looked after: one that runs, or the files of one that does not.

use std::path::PathBuf;

use anyhow::Context;
use kelvin_kvstore::maintenance::{Purpose, StoppedStore};

use crate::store_at::StoreAt;

#[derive(Debug, clap::Args)]
pub(super) struct Subject {
    #[command(flatten)]
    pub(super) store: StoreAt,

    /// In place of a running store, the data directory of one that is stopped
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
}

impl Subject {
    /// The stopped store, if one is meant.
    pub(super) fn stopped(&self, purpose: Purpose) -> anyhow::Result<Option<StoppedStore>> {
        let Some(dir) = &self.data else { return Ok(None) };
        let store = StoppedStore::open(dir, purpose).with_context(|| format!("open {}", dir.display()))?;
        for path in store.missing() {
            eprintln!("warning: {} is not there: its blocks are left out", path.display());
        }
        Ok(Some(store))
    }
}
