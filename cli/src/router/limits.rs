//! Bounds on what a router takes on: flags of `kelvin router` that `kelvin up` passes on.

use std::ffi::OsString;
use std::time::Duration;

use kelvin_router::RouterConfig;

use crate::values;

/// How many requests there may be, where, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct Limits {
    /// Most requests in work at once, of workers and of backends each; more of them wait in the queue
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    requests_max: u32,

    /// Requests handed to workers at once for each slot of a decode worker, so that the others wait here, where
    /// priorities count; 0 for as many as --requests-max allows
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    requests_per_slot: u32,

    /// Most requests in the queue, of workers and of backends each; one more is answered 429, or takes the place of
    /// one of a lower "priority"; 0 for no queue
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    queue_max: u32,

    /// Most time in the queue, after which a request is answered 429; its "deadline_ms" can make it less
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = values::duration)]
    queue_timeout: Duration,

    /// Uncached tokens from which on a prompt is long: long ones share the workers' time with the others, so that
    /// neither starves
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..))]
    long_tokens: u64,

    /// Most long prompts in work at once [default: half of what may be]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    long_max: Option<u32>,

    /// Most connections at once; one more waits
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    connections_max: u32,

    /// Most MiB for knowing what is in backends' memories, and as many for each store, the workers' and those that backends
    /// load from, twice that while it is read for the first time; with those used up, the workers' store is asked for each
    /// request, and routing to backends knows no more
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    directory_mib: u32,

    /// Most MiB of a request's body, images included; a longer one is answered 413
    #[arg(long, value_name = "MIB", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    body_mib: u32,

    /// Most time from handing a request to a worker or a backend to its first token
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = values::time)]
    first_token_timeout: Duration,

    /// Most time between two tokens
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = values::time)]
    token_timeout: Duration,

    /// Most time that a client may take to make room for the next part of a stream, after which it is cut off
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = values::time)]
    client_timeout: Duration,

    /// Most tokens of a completion for which the request names no limit
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    tokens_max_default: u32,
}

impl Limits {
    /// As `kelvin router` takes them.
    pub(crate) fn flags(&self) -> Vec<OsString> {
        let mut flags = vec![
            ("--requests-max", self.requests_max.to_string()),
            ("--requests-per-slot", self.requests_per_slot.to_string()),
            ("--queue-max", self.queue_max.to_string()),
            ("--queue-timeout", micros(self.queue_timeout)),
            ("--long-tokens", self.long_tokens.to_string()),
            ("--connections-max", self.connections_max.to_string()),
            ("--directory-mib", self.directory_mib.to_string()),
            ("--body-mib", self.body_mib.to_string()),
            ("--first-token-timeout", micros(self.first_token_timeout)),
            ("--token-timeout", micros(self.token_timeout)),
            ("--client-timeout", micros(self.client_timeout)),
            ("--tokens-max-default", self.tokens_max_default.to_string()),
        ];
        flags.extend(self.long_max.map(|max| ("--long-max", max.to_string())));
        flags.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect()
    }

    pub(super) fn config(&self) -> RouterConfig {
        RouterConfig {
            requests_max: self.requests_max as usize,
            requests_per_slot: self.requests_per_slot,
            queue_max: self.queue_max as usize,
            queue_timeout: self.queue_timeout,
            long_tokens: self.long_tokens,
            long_max: self.long_max.map(|max| max as usize),
            connections_max: self.connections_max as usize,
            directory_bytes: (self.directory_mib as usize) << 20,
            body_bytes_max: (self.body_mib as usize) << 20,
            first_token_timeout: self.first_token_timeout,
            token_timeout: self.token_timeout,
            client_timeout: self.client_timeout,
            tokens_max_default: self.tokens_max_default,
            ..RouterConfig::default()
        }
    }
}

/// As a flag takes it.
fn micros(time: Duration) -> String {
    format!("{}us", time.as_micros())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        limits: Limits,
    }

    fn parse(flags: impl IntoIterator<Item = OsString>) -> Limits {
        Alone::try_parse_from(std::iter::once("router".into()).chain(flags)).unwrap().limits
    }

    #[test]
    fn what_is_passed_on_is_what_was_given() {
        let own = "--requests-max 3 --requests-per-slot 0 --queue-max 4 --queue-timeout 1500ms --long-tokens 5 \
                   --long-max 6 --connections-max 7 --directory-mib 9 --tokens-max-default 8 \
                   --body-mib 10 --first-token-timeout 11s --token-timeout 12ms --client-timeout 13s";
        let limits = parse(own.split_whitespace().map(OsString::from));
        assert_eq!(
            (limits.queue_max, limits.long_max, limits.queue_timeout),
            (4, Some(6), Duration::from_millis(1500))
        );
        assert_eq!(limits.config().directory_bytes, 9 << 20);
        assert_eq!(parse(limits.flags()), limits);
        let defaults = parse([]);
        let (ours, theirs) = (defaults.config(), RouterConfig::default());
        assert_eq!(ours.directory_bytes, theirs.directory_bytes);
        assert_eq!(ours.body_bytes_max, theirs.body_bytes_max);
        let times =
            |config: &RouterConfig| [config.first_token_timeout, config.token_timeout, config.client_timeout];
        assert_eq!(times(&ours), times(&theirs));
        assert_eq!(parse(defaults.flags()), defaults);
    }
}
