//! Which web pages may ask. A page of this machine may by default, as with other servers that people run beside their browser: any other page could use
//! whatever the browser's user can reach.

use std::str::FromStr;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use hyper::Response;

use super::Reply;

/// How long a browser may remember what it was allowed.
const REMEMBER_SECONDS: u32 = 600;

/// Origins whose pages may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// None.
    Off,
    /// Pages of this machine: localhost, 127.0.0.1, `[::1]`, whatever their port.
    #[default]
    Local,
    /// These.
    List(Vec<String>),
    /// All.
    Any,
}

/// Not an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("given {given:?}, allowed: off, local, any, or origins such as https://chat.example.com, comma separated")]
pub struct CorsError {
    given: String,
}

impl FromStr for Cors {
    type Err = CorsError;

    fn from_str(text: &str) -> Result<Self, CorsError> {
        match text.trim() {
            "off" => Ok(Self::Off),
            "local" => Ok(Self::Local),
            "any" | "*" => Ok(Self::Any),
            list => list.split(',').map(|origin| read(origin.trim())).collect::<Result<_, _>>().map(Self::List),
        }
    }
}

/// An origin: scheme, host and perhaps port, and nothing behind them.
fn read(text: &str) -> Result<String, CorsError> {
    let wrong = || CorsError { given: crate::error::cut(text) };
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let bare = uri.path() == "/" && !text.ends_with('/') && uri.query().is_none();
    if bare && uri.scheme().is_some() && uri.host().is_some_and(|host| !host.is_empty()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(wrong())
    }
}

impl Cors {
    /// Whether a page of this origin may ask.
    pub fn allows(&self, origin: Option<&HeaderValue>) -> bool {
        let Some(origin) = origin.and_then(|origin| origin.to_str().ok()) else { return false };
        match self {
            Self::Off => false,
            Self::Any => true,
            Self::List(origins) => origins.iter().any(|known| known.eq_ignore_ascii_case(origin)),
            Self::Local => {
                let uri = origin.parse::<Uri>();
                uri.is_ok_and(|uri| matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]")))
            }
        }
    }

    /// Whether every page may ask.
    pub fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

/// Whether a browser asks if it may ask.
pub fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Whether a page may have sent this without asking first: browsers send forms and plain text anywhere, and only keep the answer from the page.
pub fn is_simple<B>(request: &Request<B>) -> bool {
    let content = request.headers().get(header::CONTENT_TYPE).map_or(Ok(""), |value| value.to_str());
    let is_json = content.is_ok_and(|content| content.trim_start().to_ascii_lowercase().starts_with("application/json"));
    request.method() == Method::POST && request.headers().contains_key(header::ORIGIN) && !is_json
}

/// It may: the answer, which [`mark`] completes.
pub fn preflight<B>(request: &Request<B>) -> Response<Reply> {
    let mut response = Response::new(Reply::whole(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    // Clients send headers of their own (x-stainless-os, openai-organization); none of them does anything here.
    let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(HeaderValue::from_static("authorization, content-type")));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(REMEMBER_SECONDS));
    response
}

/// Lets the page read the answer.
pub fn mark(headers: &mut HeaderMap, origin: HeaderValue, any: bool) {
    let allowed = if any { HeaderValue::from_static("*") } else { origin };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(cors: &str, origin: &'static str) -> bool {
        cors.parse::<Cors>().unwrap().allows(Some(&HeaderValue::from_static(origin)))
    }

    #[test]
    fn origins_are_off_local_listed_or_any() {
        assert!(!allows("off", "http://localhost:3000"));
        for (origin, may) in [
            ("http://localhost:3000", true),
            ("https://127.0.0.1", true),
            ("http://[::1]:5173", true),
            ("http://localhost.evil.example", false),
            ("http://127.0.0.1.evil.example", false),
            ("https://evil.example", false),
            ("null", false),
        ] {
            assert_eq!(allows("local", origin), may, "{origin}");
        }
        assert!(allows("https://a.example, http://b.example:8080", "http://b.example:8080"));
        assert!(!allows("https://a.example", "https://a.example:444"));
        assert!(allows("any", "https://evil.example"));
        assert!(!Cors::Any.allows(None), "no page asks");
        for bad in ["", "a.example", "https://", "https://a.example/", "https://a.example/path", "https://a b"] {
            assert!(bad.parse::<Cors>().is_err(), "{bad}");
        }
    }
}
