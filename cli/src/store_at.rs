//! Which store a subcommand talks to.

use anyhow::Context;
use kelvin_kvstore::{Client, ClientOptions};

use crate::values;

#[derive(Debug, clap::Args)]
pub(crate) struct StoreAt {
    /// The store
    #[arg(long = "store", env = "KELVIN_STORE", value_name = "URL", default_value = "http://127.0.0.1:7440", value_parser = values::endpoint)]
    pub(crate) url: String,

    /// Bearer token of the store [default: none]
    #[arg(long, env = "KELVIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

impl StoreAt {
    /// A client of a running store, for a person who wants to look inside.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let options = ClientOptions { token: self.token.clone(), ..ClientOptions::new(&self.url, "kelvin") };
        Client::connect(options).await.with_context(|| {
            format!("no store answers at {} (--store or KELVIN_STORE names another)", self.url)
        })
    }
}
