//! A plain HTTP client and a reader of server-sent events.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Asks one router.
#[derive(Clone)]
pub struct Client {
    inner: Pooled<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    authorization: Option<String>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { inner: Pooled::builder(TokioExecutor::new()).build_http(), address, authorization: None }
    }

    /// The same client with an `Authorization` header.
    pub fn with_authorization(&self, value: &str) -> Self {
        Self { authorization: Some(value.to_owned()), ..self.clone() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, Vec::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body.to_string().into_bytes()).await
    }

    pub async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> Answer {
        let response = self.raw(method, path, body).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    /// The events of a streamed answer.
    pub async fn stream(&self, path: &str, body: &Value) -> Events {
        let response = self.raw("POST", path, body.to_string().into_bytes()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { body: response.into_body(), buffer: Vec::new() }
    }

    /// Whether anybody answers.
    pub async fn is_answered(&self) -> bool {
        let uri = format!("http://{}/health", self.address).parse().unwrap();
        self.inner.get(uri).await.is_ok()
    }

    async fn raw(&self, method: &str, path: &str, body: Vec<u8>) -> http::Response<Incoming> {
        let uri = format!("http://{}{path}", self.address);
        let mut request = http::Request::builder().method(method).uri(uri);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        self.inner.request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap()
    }
}

/// Events as they come: (name, data).
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    pub async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let event = String::from_utf8(event).expect("no character is cut");
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").to_owned();
                return Some((field("event: "), field("data: ")));
            }
            let frame = self.body.frame().await?.expect("the stream does not break");
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// Waits for the end; whether the stream broke.
    pub async fn breaks(mut self) -> bool {
        loop {
            match self.body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return true,
                None => return false,
            }
        }
    }

    /// The next event's JSON.
    pub async fn json(&mut self) -> Value {
        let (_, data) = self.next().await.expect("one more event");
        serde_json::from_str(&data).unwrap()
    }

    /// All that is left; `[DONE]` as a string.
    pub async fn rest(mut self) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        while let Some((name, data)) = self.next().await {
            all.push((name, serde_json::from_str(&data).unwrap_or(Value::String(data))));
        }
        assert!(self.buffer.is_empty(), "the stream ends with a whole event");
        all
    }
}
