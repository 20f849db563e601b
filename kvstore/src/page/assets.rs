//! The page's files, in the binary.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};

macro_rules! files {
    ($($name:literal: $kind:ident;)*) => {
        [$(($name, $kind, include_str!(concat!("assets/", $name))),)*]
    };
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

/// Name below `/ui/`, content type, text.
const FILES: [(&str, &str, &str); 18] = files! {
    "index.html": HTML;
    "style.css": CSS;
    "charts.css": CSS;
    "icon.svg": SVG;
    "app.js": JS;
    "api.js": JS;
    "charts.js": JS;
    "curve.js": JS;
    "dom.js": JS;
    "flame.js": JS;
    "history.js": JS;
    "requests.js": JS;
    "tables.js": JS;
    "theme.js": JS;
    "units.js": JS;
    "vendor/uPlot.esm.js": JS;
    "vendor/uPlot.min.css": CSS;
    "vendor/uPlot.LICENSE.txt": TEXT;
};

/// Nothing comes from elsewhere, nothing is framed, no script stands in a page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// A file of the page.
pub(super) fn file(name: &str) -> Option<Response> {
    let (_, kind, text) = FILES.iter().find(|(known, _, _)| *known == name)?;
    Some(([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], *text).into_response())
}

/// What every answer says to a browser.
pub(super) fn guard(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the browser would have to ask for elsewhere, or could not find here.
    #[test]
    fn files_name_files_of_theirs_alone() {
        for (name, _, text) in FILES.iter().filter(|(name, _, _)| !name.starts_with("vendor/")) {
            for quote in ["from \"./", "import \"./", "src=\"./", "href=\"./"] {
                for (at, _) in text.match_indices(quote) {
                    let rest = &text[at + quote.len()..];
                    let target = &rest[..rest.find('"').unwrap_or(rest.len())];
                    assert!(file(target).is_some(), "{name} wants {target}");
                }
            }
            let away = text
                .match_indices("://")
                .map(|(at, _)| &text[at.saturating_sub(8)..(at + 24).min(text.len())]);
            let away: Vec<_> = away.filter(|near| !near.contains("www.w3.org")).collect();
            assert!(away.is_empty(), "{name}: {away:?}");
        }
    }
}
