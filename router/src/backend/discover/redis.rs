//! Backends that register themselves in Redis: keys `PREFIX:backend:NAME`, whose values are what a file of
//! backends would say of each, `{"url": "http://HOST:PORT", ...}`.
//!
//! Whoever registers a server sets its key with a time to live and sets it again before that is over:
//!
//! ```sh
//! redis-cli SET kelvin:backend:one '{"url": "http://10.0.0.1:8000"}' EX 15
//! ```
//! A key that expires is a server that leaves. A key without a time to live stays until it is deleted.
//!
//! # Failures
//! While Redis is away, what it said last stays. When it is back, servers whose keys are gone are kept for
//! [`GRACE`]: it may have started empty, and they register again by then. A value that makes no sense changes
//! nothing: what its key said last stays.
//!
//! # Limits
//! [`BACKENDS_MAX`] keys of [`NAME_BYTES_MAX`] bytes, values of [`VALUE_BYTES_MAX`]. All keys of the database are
//! walked every second: one that has millions of others should not be shared.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{AsyncConnectionConfig, ConnectionInfo, IntoConnectionInfo, aio::MultiplexedConnection};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{
        roster::{BACKENDS_MAX, Roster, Source},
        spec::BackendSpec,
    },
    metrics::Metrics,
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Most time for one answer, and for one look.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// The time to live that is usual: who was registered before Redis went away is again by then.
const GRACE: Duration = Duration::from_secs(15);
const NAME_BYTES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 4096;
/// Keys that one step of a walk goes over, and values of one question.
const STEP: usize = 1000;
const VALUES: usize = 100;
const PREFIX: &str = "kelvin";

/// A database of Redis, and what its keys begin with.
#[derive(Clone)]
pub struct BackendsRedis {
    info: ConnectionInfo,
    prefix: String,
    /// As it may be shown: without a password.
    shown: String,
}

impl fmt::Debug for BackendsRedis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for BackendsRedis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// An address that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not of the form redis://[USER:PASSWORD@]HOST:PORT[/DATABASE][/PREFIX], PREFIX of letters, digits and `_-.:`"
)]
pub struct BackendsRedisError;

/// `redis://[USER:PASSWORD@]HOST:PORT[/DATABASE][/PREFIX]`; a number is the database, and the prefix is `kelvin`
/// if there is none.
impl FromStr for BackendsRedis {
    type Err = BackendsRedisError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("redis://").ok_or(BackendsRedisError)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let address = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
        let (host, port) = address.rsplit_once(':').ok_or(BackendsRedisError)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(BackendsRedisError);
        }
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (database, prefix) = match parts[..] {
            [] => (0, PREFIX),
            [one] => one.parse::<u16>().map_or((0, one), |database| (database, PREFIX)),
            [database, prefix] => (database.parse::<u16>().map_err(|_| BackendsRedisError)?, prefix),
            _ => return Err(BackendsRedisError),
        };
        // A pattern is made of it, in which other characters have meanings.
        if !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte)) {
            return Err(BackendsRedisError);
        }
        let info = format!("redis://{authority}/{database}").into_connection_info();
        let info = info.map_err(|_| BackendsRedisError)?;
        let shown = format!("redis://{address}/{database}/{prefix}");
        Ok(Self { info, prefix: prefix.to_owned(), shown })
    }
}

/// Values by key.
type Values = BTreeMap<String, Vec<u8>>;

/// Keeps `roster` as the registrations say, until `stop`.
pub(crate) async fn follow(
    redis: BackendsRedis,
    roster: Arc<Roster>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let looks = async {
        let mut known = Registrations::default();
        let mut connection = None;
        let (started, mut last) = (Instant::now(), None);
        loop {
            let look = timeout(LOOK_TIMEOUT, look(&redis, &mut connection)).await;
            let look = look.unwrap_or_else(|_| {
                Err(format!(
                    "it did not show its keys within {} s: has it many others?",
                    LOOK_TIMEOUT.as_secs()
                ))
            });
            match look {
                Ok(values) => {
                    let odd = known.heard(values, started.elapsed());
                    metrics.backend.source_error(Source::Redis.name(), "malformed", odd.len() as u64);
                    for (key, why) in odd {
                        tracing::warn!(redis = %redis, key, why, "a registration makes no sense");
                    }
                    let specs = known.specs();
                    metrics.backend.looked(Source::Redis.name(), Some(specs.len()));
                    roster.seen(Source::Redis, Ok(specs.len()));
                    if last.as_ref() != Some(&specs) {
                        roster.name(Source::Redis, specs.clone());
                        last = Some(specs);
                    }
                }
                Err(why) => {
                    connection = None;
                    known.away();
                    metrics.backend.looked(Source::Redis.name(), None);
                    if roster.seen(Source::Redis, Err(why.clone())) {
                        tracing::error!(redis = %redis, why, "registrations cannot be seen, those seen last stay");
                    }
                }
            }
            sleep(EVERY).await;
        }
    };
    tokio::select! {
        () = looks => {}
        () = stop.cancelled() => {}
    }
}

/// All registrations that there are now.
async fn look(
    redis: &BackendsRedis,
    connection: &mut Option<MultiplexedConnection>,
) -> Result<Values, String> {
    let failed = |error: redis::RedisError| error.to_string();
    if connection.is_none() {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let client = redis::Client::open(redis.info.clone()).map_err(failed)?;
        let opened = client.get_multiplexed_async_connection_with_config(&config).await;
        *connection = Some(opened.map_err(failed)?);
    }
    let Some(connection) = connection.as_mut() else { return Err("there is no connection".into()) };
    let start = format!("{}:backend:", redis.prefix);
    let (mut keys, mut cursor) = (Vec::new(), 0_u64);
    loop {
        let mut step = redis::cmd("SCAN");
        step.arg(cursor)
            .arg("MATCH")
            .arg(format!("{start}*"))
            .arg("COUNT")
            .arg(STEP)
            .arg("TYPE")
            .arg("string");
        let (next, some): (u64, Vec<Vec<u8>>) = step.query_async(connection).await.map_err(failed)?;
        let named = some.into_iter().filter(|key| key.len() - start.len().min(key.len()) <= NAME_BYTES_MAX);
        keys.extend(named.filter_map(|key| String::from_utf8(key).ok()));
        // A key may come more than once.
        keys.sort_unstable();
        keys.dedup();
        if keys.len() > BACKENDS_MAX {
            return Err(format!("there are more than {BACKENDS_MAX} keys {start}*"));
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    let mut values = Values::new();
    for keys in keys.chunks(VALUES) {
        let mut question = redis::pipe();
        for key in keys {
            // One byte more than is taken tells that there is more.
            question.cmd("GETRANGE").arg(key).arg(0).arg(VALUE_BYTES_MAX);
        }
        let some: Vec<Vec<u8>> = question.query_async(connection).await.map_err(failed)?;
        // One that expired in between is empty.
        let there = keys.iter().cloned().zip(some).filter(|(_, value)| !value.is_empty());
        values.extend(there);
    }
    Ok(values)
}

/// What was registered. Pure: time comes in as a number.
#[derive(Default)]
struct Registrations {
    known: BTreeMap<String, Registration>,
    is_away: bool,
    /// Until then nothing that is not there any more leaves.
    grace: Option<Duration>,
}

struct Registration {
    value: Vec<u8>,
    /// What it said when it made sense last.
    spec: Option<BackendSpec>,
}

impl Registrations {
    fn away(&mut self) {
        self.is_away = true;
    }

    /// All there is at `now`. Returns what makes no sense and was not heard before, and why.
    fn heard(&mut self, values: Values, now: Duration) -> Vec<(String, String)> {
        if std::mem::take(&mut self.is_away) {
            self.grace = Some(now + GRACE);
        }
        self.grace = self.grace.filter(|until| now < *until);
        if self.grace.is_none() {
            self.known.retain(|key, _| values.contains_key(key));
        }
        let mut odd = Vec::new();
        for (key, value) in values {
            if self.known.get(&key).is_some_and(|known| known.value == value) {
                continue;
            }
            let before = self.known.remove(&key).and_then(|known| known.spec);
            let spec = match parse(&value) {
                Ok(spec) => Some(spec),
                Err(why) => {
                    odd.push((key.clone(), why));
                    before
                }
            };
            self.known.insert(key, Registration { value, spec });
        }
        odd
    }

    fn specs(&self) -> Vec<BackendSpec> {
        self.known.values().filter_map(|registration| registration.spec.clone()).collect()
    }
}

fn parse(value: &[u8]) -> Result<BackendSpec, String> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("it has more than {VALUE_BYTES_MAX} bytes"));
    }
    let spec: BackendSpec = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    spec.checked().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_database_and_a_prefix() {
        for (text, database, prefix, shown) in [
            ("redis://127.0.0.1:6379", 0, "kelvin", "redis://127.0.0.1:6379/0/kelvin"),
            ("redis://127.0.0.1:6379/", 0, "kelvin", "redis://127.0.0.1:6379/0/kelvin"),
            ("redis://h:1/3", 3, "kelvin", "redis://h:1/3/kelvin"),
            ("redis://h:1/blue", 0, "blue", "redis://h:1/0/blue"),
            ("redis://me:secret@h:1/2/blue:x", 2, "blue:x", "redis://h:1/2/blue:x"),
        ] {
            let redis: BackendsRedis = text.parse().unwrap();
            assert_eq!(
                (redis.info.redis_settings().db(), redis.prefix.as_str()),
                (database, prefix),
                "{text}"
            );
            assert_eq!(format!("{redis:?}"), shown);
        }
        for text in [
            "127.0.0.1:6379",
            "redis://h",
            "redis://h:x",
            "redis://:1",
            "redis://h:1/a/b",
            "redis://h:1/a*",
            "redis://h:1/1/a/b",
        ] {
            assert!(text.parse::<BackendsRedis>().is_err(), "{text}");
        }
    }

    fn values(some: &[(&str, &str)]) -> Values {
        some.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn urls(known: &Registrations) -> Vec<String> {
        known.specs().into_iter().map(|spec| spec.url).collect()
    }

    const ONE: (&str, &str) = ("a", r#"{"url": "http://h:1"}"#);
    const TWO: (&str, &str) = ("b", r#"{"url": "http://h:2"}"#);

    #[test]
    fn a_key_that_goes_is_a_server_that_leaves() {
        let (mut known, now) = (Registrations::default(), Duration::ZERO);
        assert!(known.heard(values(&[ONE, TWO]), now).is_empty());
        assert_eq!(urls(&known), ["http://h:1", "http://h:2"]);
        known.heard(values(&[TWO]), now);
        assert_eq!(urls(&known), ["http://h:2"]);
    }

    #[test]
    fn who_registers_again_after_an_outage_was_there_all_the_time() {
        let mut known = Registrations::default();
        known.heard(values(&[ONE, TWO]), Duration::ZERO);
        known.away();
        known.heard(values(&[]), Duration::from_secs(100));
        assert_eq!(urls(&known).len(), 2, "it started empty");
        known.heard(values(&[ONE]), Duration::from_secs(114));
        assert_eq!(urls(&known).len(), 2);
        known.heard(values(&[ONE]), Duration::from_secs(115));
        assert_eq!(urls(&known), ["http://h:1"]);
    }

    #[test]
    fn what_makes_no_sense_is_said_once_and_changes_nothing() {
        let (mut known, now) = (Registrations::default(), Duration::ZERO);
        known.heard(values(&[ONE]), now);
        let long = " ".repeat(VALUE_BYTES_MAX + 1);
        for bad in ["{", r#"{"url": "h"}"#, r#"{"url": "http://h:1", "colour": 1}"#, long.as_str()] {
            assert_eq!(known.heard(values(&[("a", bad)]), now).len(), 1, "{bad}");
            assert!(known.heard(values(&[("a", bad)]), now).is_empty());
            assert_eq!(urls(&known), ["http://h:1"]);
        }
        assert_eq!(known.heard(values(&[("c", "")]), now).len(), 1);
        assert_eq!(urls(&known).len(), 0, "its key is gone, and the other never made sense");
    }
}
