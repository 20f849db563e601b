//! Who may ask: the checks before every answer.
//!
//! The listener is loopback, so whoever reaches it is on this machine, or is a web page that a browser on this
//! machine shows. The latter is kept out twice: its `Host` is not an address of this machine when its name was
//! pointed at one (DNS rebinding), and its `Origin` is not the page's own. Changes want a bearer token as well,
//! which no browser sends by itself.

use axum::http::{HeaderMap, header};

/// A secret, compared without telling by the time it takes.
#[derive(Clone)]
pub struct Token(blake3::Hash);

impl Token {
    /// Of its text.
    pub fn new(text: &str) -> Self {
        Self(blake3::hash(text.as_bytes()))
    }

    /// Whether it is the one.
    pub fn is(&self, text: &str) -> bool {
        self.0 == blake3::hash(text.as_bytes())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// The bearer token of a request, if it has one.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
        .filter(|token| !token.is_empty())
}

/// Whether the request names this machine as its host: an address, or `localhost`, never another name.
pub(super) fn is_own_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a change comes from the page itself, or from no page at all.
pub(super) fn is_own_origin(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    match (origin, host) {
        (None, _) => true,
        (Some(origin), Some(host)) => origin.strip_prefix("http://") == Some(host),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_this_machine_is_an_own_host() {
        for (host, own) in [
            ("127.0.0.1:7441", true),
            ("localhost:7441", true),
            ("[::1]:7441", true),
            ("[::1]", true),
            ("127.8.8.8", true),
            ("evil.example:7441", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1:80", false),
            ("", false),
        ] {
            assert_eq!(is_own_host(&headers(&[(header::HOST, host)])), own, "{host}");
        }
        assert!(!is_own_host(&HeaderMap::new()));
    }

    #[test]
    fn a_change_comes_from_the_page_or_from_no_page() {
        let host = (header::HOST, "127.0.0.1:7441");
        for (origin, own) in [
            ("http://127.0.0.1:7441", true),
            ("http://127.0.0.1:8080", false),
            ("https://127.0.0.1:7441", false),
            ("http://evil.example", false),
            ("null", false),
        ] {
            assert_eq!(is_own_origin(&headers(&[host.clone(), (header::ORIGIN, origin)])), own, "{origin}");
        }
        assert!(is_own_origin(&headers(&[host])));
    }

    #[test]
    fn a_token_is_what_follows_bearer() {
        let token = Token::new("secret");
        let given = |value| headers(&[(header::AUTHORIZATION, value)]);
        assert!(bearer(&given("Bearer secret")).is_some_and(|text| token.is(text)));
        assert!(bearer(&given("Bearer other")).is_some_and(|text| !token.is(text)));
        for none in ["Bearer ", "secret", "Basic secret"] {
            assert_eq!(bearer(&given(none)), None, "{none}");
        }
    }
}
