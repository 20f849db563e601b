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

    /// Most MiB for knowing what is in backends' memories, and as many for each store that they load from; with those
    /// used up, routing knows no more
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    directory_mib: u32,

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
            ("--queue-timeout", format!("{}us", self.queue_timeout.as_micros())),
            ("--long-tokens", self.long_tokens.to_string()),
            ("--connections-max", self.connections_max.to_string()),
            ("--directory-mib", self.directory_mib.to_string()),
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
            tokens_max_default: self.tokens_max_default,
            ..RouterConfig::default()
        }
    }
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
                   --long-max 6 --connections-max 7 --directory-mib 9 --tokens-max-default 8";
        let limits = parse(own.split_whitespace().map(OsString::from));
        assert_eq!(
            (limits.queue_max, limits.long_max, limits.queue_timeout),
            (4, Some(6), Duration::from_millis(1500))
        );
        assert_eq!(limits.config().directory_bytes, 9 << 20);
        assert_eq!(parse(limits.flags()), limits);
        let defaults = parse([]);
        assert_eq!(defaults.config().directory_bytes, RouterConfig::default().directory_bytes);
        assert_eq!(parse(defaults.flags()), defaults);
    }
}
