//! An API server for one kind: lists, watches from a resource version, and fails as it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

const API_VERSION: &str = "serving.minimax-m1.dev/v1alpha1";

/// What a watch says next; nothing: its connection breaks.
type Line = Option<Value>;

struct Book {
    version: u64,
    objects: BTreeMap<String, Value>,
    /// Every event with its version, as a watch repeats it.
    events: Vec<(u64, Value)>,
    refusals: u32,
}

struct Stage {
    book: Mutex<Book>,
    lines: broadcast::Sender<Line>,
    calls: watch::Sender<Vec<String>>,
}

#[derive(Clone)]
pub struct Cluster {
    pub address: SocketAddr,
    stage: Arc<Stage>,
}

impl Cluster {
    pub async fn start() -> Self {
        let book = Book { version: 1, objects: BTreeMap::new(), events: Vec::new(), refusals: 0 };
        let stage = Stage { book: Mutex::new(book), lines: broadcast::channel(64).0, calls: watch::Sender::new(Vec::new()) };
        let stage = Arc::new(stage);
        let routes = axum::Router::new().fallback(answer).with_state(Arc::clone(&stage));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { address, stage }
    }

    /// A client as the router would make one.
    pub fn client(&self) -> kube::Client {
        let config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }

    /// Writes an object; watches hear of it.
    pub fn apply(&self, name: &str, spec: Value) {
        self.change(name, Some(json!({"name": name, "namespace": "serving"})), spec);
    }

    /// The object is being deleted, and not gone yet.
    pub fn finalize(&self, name: &str, spec: Value) {
        let metadata = json!({"name": name, "namespace": "serving", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        self.change(name, Some(metadata), spec);
    }

    /// The object is gone.
    pub fn delete(&self, name: &str) {
        self.change(name, None, Value::Null);
    }

    fn change(&self, name: &str, metadata: Option<Value>, spec: Value) {
        let mut book = self.stage.book.lock().unwrap();
        book.version += 1;
        let version = book.version;
        let (kind, mut object) = match metadata {
            Some(metadata) => {
                let object = json!({"apiVersion": API_VERSION, "kind": "ExpertPlacement", "metadata": metadata, "spec": spec});
                let kind = if book.objects.contains_key(name) { "MODIFIED" } else { "ADDED" };
                (kind, object)
            }
            None => ("DELETED", book.objects.remove(name).expect("it exists")),
        };
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if kind != "DELETED" {
            book.objects.insert(name.to_owned(), object.clone());
        }
        let event = json!({"type": kind, "object": object});
        book.events.push((version, event.clone()));
        let _ = self.stage.lines.send(Some(event));
    }

    /// Forgets its history, as a server does after a while: watches end with 410, and changes since then are seen in a list only.
    pub fn compact(&self, unseen: impl FnOnce(&Self)) {
        let listeners = self.stage.lines.clone();
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410});
        let _ = listeners.send(Some(json!({"type": "ERROR", "object": status})));
        unseen(self);
        self.stage.book.lock().unwrap().events.clear();
    }

    /// Breaks the connection of every watch.
    pub fn cut(&self) {
        let _ = self.stage.lines.send(None);
    }

    /// The next calls fail.
    pub fn refuse(&self, calls: u32) {
        self.stage.book.lock().unwrap().refusals = calls;
    }

    /// Paths with their queries so far.
    pub fn calls(&self) -> Vec<String> {
        self.stage.calls.borrow().clone()
    }

    /// Waits until there were so many calls that contain a text.
    pub async fn wait_calls(&self, text: &str, count: usize) {
        let mut calls = self.stage.calls.subscribe();
        let wait = calls.wait_for(|calls| calls.iter().filter(|call| call.contains(text)).count() >= count);
        tokio::time::timeout(super::PATIENCE, wait).await.unwrap_or_else(|_| panic!("{count} calls with {text}")).unwrap();
    }
}

async fn answer(State(stage): State<Arc<Stage>>, uri: Uri) -> Response {
    let parameters = uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
    let query: BTreeMap<&str, &str> = parameters.collect();
    let mut book = stage.book.lock().unwrap();
    stage.calls.send_modify(|calls| calls.push(uri.to_string()));
    if book.refusals > 0 {
        book.refusals -= 1;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "scripted", "reason": "InternalError", "code": 500});
        return (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(status)).into_response();
    }
    if query.get("watch") != Some(&"true") {
        let items: Vec<&Value> = book.objects.values().collect();
        let metadata = json!({"resourceVersion": book.version.to_string()});
        let list = json!({"apiVersion": API_VERSION, "kind": "ExpertPlacementList", "metadata": metadata, "items": items});
        return axum::Json(list).into_response();
    }
    let since: u64 = query["resourceVersion"].parse().unwrap();
    let missed: Vec<Line> =
        book.events.iter().filter(|(version, _)| *version > since).map(|(_, event)| Some(event.clone())).collect();
    let live = BroadcastStream::new(stage.lines.subscribe()).map(|line| line.unwrap());
    let lines = tokio_stream::iter(missed).chain(live).map(|line| match line {
        Some(event) => Ok(Bytes::from(format!("{event}\n"))),
        None => Err(std::io::Error::other("scripted")),
    });
    Body::from_stream(lines).into_response()
}
