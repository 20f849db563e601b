//! Where packs are kept, and how patient their reader is.

use std::{fmt, path::PathBuf, sync::Arc, sync::Once, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, aws::AmazonS3ConfigKey,
    local::LocalFileSystem, path::Path,
};

use super::{BreakerOptions, ObjectError};

/// A key for an S3 server.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// As `AWS_ACCESS_KEY_ID`.
    pub key_id: String,
    /// As `AWS_SECRET_ACCESS_KEY`.
    pub secret: String,
    /// As `AWS_SESSION_TOKEN`.
    pub token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, secret)", self.key_id)
    }
}

/// Where packs are kept, and how patient their reader is.
#[derive(Debug, Clone)]
pub struct ObjectOptions {
    /// `s3://bucket/prefix`, `file:///directory` or a plain directory.
    pub url: String,
    /// Another S3 server than AWS, e.g. `https://minio.example:9000`.
    pub endpoint: Option<String>,
    /// As `AWS_REGION`, which is taken where this is `None`.
    pub region: Option<String>,
    /// `https://bucket.endpoint/key` in place of `https://endpoint/bucket/key`.
    pub virtual_host: bool,
    /// Whether an `http://` endpoint may be used.
    pub allow_http: bool,
    /// `None` takes them as the AWS tools do: environment, web identity, container, instance.
    pub credentials: Option<Credentials>,
    /// A read that takes longer ends as a timeout, retries and hedges included.
    pub read_deadline: Duration,
    /// The same for a write.
    pub write_deadline: Duration,
    /// A read whose first byte takes longer is asked for a second time; the first to answer wins.
    pub hedge_after: Option<Duration>,
    /// Tries after the first.
    pub retries: u32,
    /// Requests at a time, reads and writes each.
    pub concurrency: usize,
    /// A longer run of blocks is read in several GETs side by side ...
    pub get_bytes_max: u64,
    /// ... of at least so many blocks each, so that small and large blocks alike cost few requests.
    pub get_blocks_min: usize,
    /// Unwanted bytes between two wanted blocks that are read along rather than asked for apart.
    pub gap_bytes_max: u64,
    /// When to stop asking for a while.
    pub breaker: BreakerOptions,
}

impl ObjectOptions {
    /// The defaults, for a place.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            endpoint: None,
            region: None,
            virtual_host: false,
            allow_http: false,
            credentials: None,
            read_deadline: Duration::from_secs(5),
            write_deadline: Duration::from_secs(30),
            hedge_after: None,
            retries: 2,
            concurrency: 16,
            get_bytes_max: 8 << 20,
            get_blocks_min: 12,
            gap_bytes_max: 256 << 10,
            breaker: BreakerOptions::default(),
        }
    }
}

/// A place for objects.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    /// For people.
    pub(super) name: String,
}

impl Place {
    pub(super) fn open(options: &ObjectOptions) -> Result<Self, ObjectError> {
        check(options)?;
        if let Some(rest) = options.url.strip_prefix("s3://") {
            return s3(options, rest);
        }
        let directory = match options.url.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => path,
            Some(("file", _)) => {
                return Err(configuration("file: takes an absolute path, file:///directory"));
            }
            Some((scheme, _)) => {
                let text = format!("{scheme}:// is not known; give s3://bucket/prefix or a directory");
                return Err(configuration(text));
            }
            None => &options.url,
        };
        local(directory)
    }
}

fn configuration(text: impl Into<String>) -> ObjectError {
    ObjectError::Configuration(text.into())
}

fn check(options: &ObjectOptions) -> Result<(), ObjectError> {
    let wrong = [
        (options.url.is_empty(), "the object tier wants a place: s3://bucket/prefix or a directory"),
        (options.concurrency == 0, "the object tier wants a concurrency of at least 1"),
        (options.concurrency > 4096, "the object tier takes a concurrency of at most 4096"),
        (options.read_deadline.is_zero(), "the object tier wants a read deadline above 0"),
        (options.write_deadline.is_zero(), "the object tier wants a write deadline above 0"),
        (options.get_bytes_max == 0, "the object tier wants GETs of at least 1 byte"),
        (options.breaker.failures == 0, "the breaker of the object tier wants at least 1 failure to open"),
    ];
    wrong.into_iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, text)| Err(configuration(text)))
}

fn local(directory: &str) -> Result<Place, ObjectError> {
    let path = PathBuf::from(directory);
    let fails = |error: &dyn fmt::Display| configuration(format!("object directory {directory}: {error}"));
    std::fs::create_dir_all(&path).map_err(|error| fails(&error))?;
    // Synced: a pack that was put is there after a power failure, as on S3.
    let store = LocalFileSystem::new_with_prefix(&path).map_err(|error| fails(&error))?.with_fsync(true);
    Ok(Place { store: Arc::new(store), prefix: Path::default(), name: directory.to_owned() })
}

fn s3(options: &ObjectOptions, rest: &str) -> Result<Place, ObjectError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains(['?', '#', '@', ':']) {
        return Err(configuration(format!("{} names no bucket; give s3://bucket/prefix", options.url)));
    }
    let prefix = Path::parse(prefix)
        .map_err(|error| configuration(format!("the prefix of {} is no key: {error}", options.url)))?;
    install_tls();
    // Retries, deadlines and jitter are this module's business: with tries of its own below, neither counts
    // nor deadlines would be true.
    let retry = RetryConfig {
        max_retries: 0,
        retry_timeout: options.read_deadline,
        backoff: BackoffConfig::default(),
    };
    let client = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(options.read_deadline.min(Duration::from_secs(5)))
        .with_pool_max_idle_per_host(options.concurrency * 2)
        .with_pool_idle_timeout(Duration::from_secs(60));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(options.virtual_host)
        .with_retry(retry)
        .with_client_options(client)
        // The footer's checksums cover the bytes from the commit on; a second pass for SHA-256 costs about
        // 1 CPU-second a GB on either side.
        .with_unsigned_payload(true)
        // One pack at a time, by the request that every server knows.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(Credentials { key_id, secret, token }) = &options.credentials {
        builder = builder.with_access_key_id(key_id).with_secret_access_key(secret);
        if let Some(token) = token {
            builder = builder.with_token(token);
        }
    }
    let value = |key| builder.get_config_value(&key).filter(|value| !value.is_empty());
    let endpoint = value(AmazonS3ConfigKey::Endpoint);
    let allow_http = options.allow_http;
    if let Some(endpoint) = &endpoint {
        if endpoint.starts_with("http://") && !allow_http {
            let text = format!("{endpoint} is not encrypted; allow http for the object tier or use https");
            return Err(configuration(text));
        }
        let elsewhere = [
            AmazonS3ConfigKey::AccessKeyId,
            AmazonS3ConfigKey::WebIdentityTokenFile,
            AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
            AmazonS3ConfigKey::ContainerCredentialsFullUri,
        ];
        // Without this the client would ask the metadata service of AWS, which is not there.
        if elsewhere.into_iter().all(|key| value(key).is_none()) {
            let text = format!("no key for {endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
            return Err(configuration(text));
        }
    }
    let store =
        builder.with_allow_http(allow_http).build().map_err(|error| configuration(error.to_string()))?;
    let name = match endpoint {
        Some(endpoint) => format!("{} at {endpoint}", options.url),
        None => options.url.clone(),
    };
    Ok(Place { store: Arc::new(store), prefix, name })
}

/// The HTTP client brings no cryptography of its own. One that the process has installed stays.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Err: someone else was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut ObjectOptions)) -> String {
        let mut options = ObjectOptions::new("s3://bucket/a/b");
        options.endpoint = Some("http://127.0.0.1:1".into());
        options.allow_http = true;
        options.credentials = Some(Credentials { key_id: "key".into(), secret: "hush".into(), token: None });
        change(&mut options);
        match Place::open(&options) {
            Err(ObjectError::Configuration(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bad_options_are_refused_with_what_to_change() {
        assert!(refused(|o| o.url = "ftp://host/".into()).contains("s3://bucket/prefix"));
        assert!(refused(|o| o.url = "s3:///prefix".into()).contains("names no bucket"));
        assert!(refused(|o| o.url = "s3://bucket/a//b".into()).contains("prefix"));
        assert!(refused(|o| o.url = "file://relative".into()).contains("file:///"));
        assert!(refused(|o| o.url = "/proc/none/such".into()).contains("/proc/none/such"));
        assert!(refused(|o| o.allow_http = false).contains("allow http"));
        assert!(refused(|o| o.concurrency = 0).contains("concurrency"));
        assert!(refused(|o| o.read_deadline = Duration::ZERO).contains("deadline"));
        if std::env::var_os("AWS_ACCESS_KEY_ID").is_none() {
            assert!(refused(|o| o.credentials = None).contains("AWS_ACCESS_KEY_ID"));
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let credentials = Credentials { key_id: "key".into(), secret: "hush".into(), token: None };
        assert!(!format!("{credentials:?}").contains("hush"));
    }
}
