//! Which store a subcommand talks to, and which namespace of it.

use anyhow::{Context, bail};
use kelvin_kvstore::{Client, ClientOptions};
use kelvin_proto::kv::v1::NamespaceStats;

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

/// The namespace that is wanted: the one named, or the only one.
pub(crate) fn choose(namespaces: &[NamespaceStats], wanted: Option<u64>) -> anyhow::Result<u64> {
    let known: Vec<_> =
        namespaces.iter().map(|space| format!("{} ({})", space.namespace_id, space.model)).collect();
    match (wanted, namespaces) {
        (_, []) => bail!("the store has no namespace yet; one is made by the first worker"),
        (None, [only]) => Ok(only.namespace_id),
        (None, _) => bail!("name one of the store's namespaces with --namespace: {}", known.join(", ")),
        (Some(id), spaces) if spaces.iter().any(|space| space.namespace_id == id) => Ok(id),
        (Some(id), _) => bail!("the store has no namespace {id}, but: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(namespace_id: u64) -> NamespaceStats {
        NamespaceStats { namespace_id, model: "m".into(), ..Default::default() }
    }

    #[test]
    fn the_only_namespace_needs_no_name() {
        assert_eq!(choose(&[space(3)], None).unwrap(), 3);
        assert_eq!(choose(&[space(3), space(4)], Some(4)).unwrap(), 4);
        for (spaces, wanted, words) in [
            (vec![], None, "no namespace yet"),
            (vec![space(3), space(4)], None, "3 (m), 4 (m)"),
            (vec![space(3)], Some(9), "no namespace 9, but: 3 (m)"),
        ] {
            let error = choose(&spaces, wanted).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
