//! Values of flags: sizes, durations, addresses, models. Their errors say what would be right.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A size in bytes, written `512MiB`, `1GiB`, `2GB` or as a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// Binary units first, so that a size is printed in one of them.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("{text:?} is no size; write a number and a unit, e.g. 512MiB or 1GiB");
        let (number, unit) = split_unit(text);
        let factor = if unit.is_empty() {
            1
        } else {
            let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
            known
                .ok_or_else(|| {
                    format!(
                        "{unit:?} is no unit of size; the units are B, KiB, MiB, GiB, TiB, KB, MB, GB, TB"
                    )
                })?
                .1
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = number * factor as f64;
        // Above 2^53 a float is no exact number of bytes, and nobody has that much.
        if !(bytes.fract() == 0.0 && (0.0..9e15).contains(&bytes)) {
            return Err(wrong());
        }
        Ok(Size(bytes as u64))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS[..4].iter().find(|(_, bytes)| self.0 >= *bytes) {
            None => write!(f, "{}B", self.0),
            Some((unit, bytes)) if self.0.is_multiple_of(*bytes) => write!(f, "{}{unit}", self.0 / bytes),
            Some((unit, bytes)) => write!(f, "{:.1}{unit}", self.0 as f64 / *bytes as f64),
        }
    }
}

/// Reads `200us`, `500ms`, `10s`, `5m` or `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration; write a number and a unit, e.g. 500ms, 10s, 5m or 1h");
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// A duration that is not 0.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() { Err(format!("{text:?} is no time at all; write e.g. 1m")) } else { Ok(time) }
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    (text[..unit].trim_end(), &text[unit..])
}

/// An address to listen on. Nothing is encrypted yet, so that only loopback is right.
pub(crate) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().or_else(|_| text.replacen("localhost:", "127.0.0.1:", 1).parse()).map_err(|_| {
            format!("{text:?} is no address; write IP:PORT, e.g. 127.0.0.1:7440 (port 0 takes a free one)")
        })?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "{} is not a loopback address, and this version has no TLS yet; listen on 127.0.0.1 or [::1]",
            address.ip()
        ));
    }
    Ok(address)
}

/// Where a service is found: `http://127.0.0.1:7440`, or without the `http://`.
pub(crate) fn endpoint(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let right =
        rest.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if rest.contains("://") || rest.contains('/') || !right {
        return Err(format!("{text:?} is no endpoint; write http://HOST:PORT, e.g. http://127.0.0.1:7440"));
    }
    Ok(format!("http://{rest}"))
}

/// Reads where traces go. Empty is nowhere, as OpenTelemetry has it for its variables.
pub(crate) fn otlp(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    endpoint(text).map_err(|_| {
        format!(
            "{text:?} is no collector that can be reached; write http://HOST:PORT of one that takes OTLP over gRPC, \
             without TLS and without a path, e.g. http://127.0.0.1:4317"
        )
    })
}

/// What is served: the built-in toy, or a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    Toy,
    Gguf(PathBuf),
}

/// Reads `toy` or a path. Whether the file is there is looked at later, by [`Model::check`].
pub(crate) fn model(text: &str) -> Result<Model, String> {
    match text {
        "" => Err("name a GGUF file, or toy".into()),
        "toy" => Ok(Model::Toy),
        path => Ok(Model::Gguf(path.into())),
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Model::Toy => f.write_str("toy"),
            Model::Gguf(path) => path.display().fmt(f),
        }
    }
}

impl Model {
    /// Looks whether it is there and is a GGUF file; returns its bytes on disk.
    pub(crate) fn check(&self) -> anyhow::Result<u64> {
        use std::io::Read;

        use anyhow::{Context, bail};

        let Model::Gguf(path) = self else { return Ok(0) };
        let mut magic = [0; 4];
        let mut file =
            std::fs::File::open(path).with_context(|| format!("open the model {}", path.display()))?;
        let facts = file.metadata().with_context(|| format!("look at the model {}", path.display()))?;
        if !facts.is_file() {
            bail!("the model {} is not a file", path.display());
        }
        if file.read_exact(&mut magic).is_err() || &magic != b"GGUF" {
            bail!(
                "the model {} is not a GGUF file (it does not begin with the letters GGUF)",
                path.display()
            );
        }
        Ok(facts.len())
    }
}

/// Lowercase, without separators; empty for no hash.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The tier's short name: `dram` of `TIER_DRAM`.
pub(crate) fn tier(tier: kelvin_proto::kv::v1::Tier) -> String {
    tier.as_str_name().trim_start_matches("TIER_").to_lowercase()
}

/// A block's hash: 32 hexadecimal digits.
pub(crate) fn hash(text: &str) -> Result<kelvin_kvstore::SequenceHash, String> {
    let wrong =
        || format!("{text:?} is no hash of a block; write its 32 hexadecimal digits, as kelvin watch does");
    // As bytes: a character of several bytes must not be cut.
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(wrong());
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| (pair[at] as char).to_digit(16).ok_or_else(wrong);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Ok(kelvin_kvstore::SequenceHash::from_bytes(bytes))
}

/// Cores that this process may use.
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// Prints to stdout. A reader that left, as `head` does, ends this process without a complaint.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write};

    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1GiB", 1 << 30),
            ("512 MiB", 512 << 20),
            ("1.5gib", 3 << 29),
            ("2GB", 2_000_000_000),
            ("4096", 4096),
            ("7B", 7),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for (text, hint) in [
            ("", "e.g. 512MiB"),
            ("GiB", "e.g. 512MiB"),
            ("-1GiB", "e.g. 512MiB"),
            ("0.3B", "e.g. 512MiB"),
            ("1e99GiB", "\"e99GiB\" is no unit"),
            ("9999999TiB", "e.g. 512MiB"),
            ("1Gb2", "\"Gb2\" is no unit"),
            ("1 potato", "the units are B, KiB"),
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_printed_as_they_are_read() {
        for text in ["1GiB", "512MiB", "1536MiB", "3B", "1TiB"] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.to_string().parse(), Ok(size), "{text}");
        }
        assert_eq!(Size(1 << 30).to_string(), "1GiB");
        assert_eq!(Size((1 << 30) + 1).to_string(), "1.0GiB");
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("5000us", 5), ("500ms", 500), ("10s", 10_000), ("1.5m", 90_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(time("10s"), duration("10s"));
        assert!(time("0ms").unwrap_err().contains("1m"));
        for text in ["", "10", "s", "-1s", "10 years", "1e99h"] {
            assert!(duration(text).unwrap_err().contains("500ms"), "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(loopback("localhost:80"), Ok(([127, 0, 0, 1], 80).into()));
        assert_eq!(loopback("[::1]:80").map(|address| address.port()), Ok(80));
        assert!(loopback("0.0.0.0:80").unwrap_err().contains("no TLS yet"));
        assert!(loopback("127.0.0.1").unwrap_err().contains("IP:PORT"));
    }

    #[test]
    fn endpoints() {
        for text in ["127.0.0.1:7440", "http://127.0.0.1:7440", "http://127.0.0.1:7440/"] {
            assert_eq!(endpoint(text).as_deref(), Ok("http://127.0.0.1:7440"), "{text}");
        }
        for text in ["", "127.0.0.1", "https://127.0.0.1:1", "http://h:1/v1", ":1", "h:70000"] {
            assert!(endpoint(text).unwrap_err().contains("http://HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn collectors() {
        assert_eq!(otlp("http://127.0.0.1:4317").as_deref(), Ok("http://127.0.0.1:4317"));
        assert_eq!(otlp("").as_deref(), Ok(""));
        for text in ["https://127.0.0.1:4317", "http://127.0.0.1:4318/v1/traces", "collector"] {
            assert!(otlp(text).unwrap_err().contains("without TLS"), "{text}");
        }
    }

    #[test]
    fn models() {
        assert_eq!(model("toy"), Ok(Model::Toy));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let check = || Model::Gguf(path.clone()).check();
        assert!(format!("{:#}", check().unwrap_err()).contains("No such file"));
        std::fs::write(&path, "GG").unwrap();
        assert!(check().unwrap_err().to_string().contains("not a GGUF file"));
        std::fs::write(&path, "GGUF....").unwrap();
        assert_eq!(check().unwrap(), 8);
        assert!(Model::Gguf(dir.path().into()).check().unwrap_err().to_string().contains("not a file"));
    }
}
