//! A server of this process that speaks the hub's protocol, with a host of its own for large files, and that is a plain file server
//! beside it. It keeps a log, and faults are put in its way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit of its only repository, `own/model`.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What happens to a request instead of an answer as usual.
#[derive(Clone)]
pub enum Fault {
    /// A status, with a header.
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// The answer is 200 with everything, whatever range was asked for.
    NoRange,
    /// As before, and the connection ends after so many bytes.
    NoRangeCut(usize),
    /// One byte of the body is another.
    Damage,
}

/// Is told of a request and may change the files.
type Watch = Box<dyn FnMut(&str, &mut BTreeMap<String, Vec<u8>>) + Send>;

/// What it serves and what it was asked.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The token without which the hub answers 401.
    pub token: Option<String>,
    /// Whether the plain folder has a SHA256SUMS.
    pub sums: bool,
    /// The commit of the branch main.
    pub main: String,
    /// `HOST PATH RANGE AUTHORIZATION` of every request.
    pub log: Vec<String>,
    /// (part of `HOST PATH`, how often, what).
    pub faults: Vec<(String, usize, Fault)>,
    /// Called with every line of the log, before the answer.
    pub watch: Option<Watch>,
}

pub struct Server {
    pub hub: SocketAddr,
    cdn: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct Request {
    host: &'static str,
    path: String,
    range: Option<(usize, Option<usize>)>,
    if_range: Option<String>,
    authorization: String,
}

struct Answer {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let state = Arc::new(Mutex::new(State { files, main: COMMIT.into(), ..Default::default() }));
        let listeners = ["hub", "cdn"].map(|host| (host, TcpListener::bind("127.0.0.1:0").unwrap()));
        let [hub, cdn] = listeners.each_ref().map(|(_, listener)| listener.local_addr().unwrap());
        for (host, listener) in listeners {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    // A client that goes away is none of the server's business.
                    std::thread::spawn(move || drop(serve(host, cdn, stream, &state)));
                }
            });
        }
        Server { hub, cdn, state }
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub fn fault(&self, part: &str, times: usize, fault: Fault) {
        self.change(|state| state.faults.push((part.into(), times, fault)));
    }

    /// What it was asked since the last look.
    pub fn log(&self) -> Vec<String> {
        self.change(|state| std::mem::take(&mut state.log))
    }

    pub fn plain(&self) -> String {
        format!("http://{}/plain", self.hub)
    }

    pub fn address(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// That no token has ever left the hub.
    pub fn cdn_saw_no_token(&self) {
        let _ = self.cdn;
        self.change(|state| {
            let lines = state.log.iter().filter(|line| line.starts_with("cdn "));
            assert!(lines.clone().count() > 0 && lines.clone().all(|line| line.ends_with(" -")), "{:#?}", state.log);
        });
    }
}

fn serve(host: &'static str, cdn: SocketAddr, stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { host, path, range: None, if_range: None, authorization: "-".into() };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (first, last) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                request.range = Some((first.parse().unwrap(), last.parse().ok()));
            }
            "if-range" => request.if_range = Some(value.into()),
            "authorization" => request.authorization = value.into(),
            _ => {}
        }
    }
    let (answer, cut) = answer(&mut state.lock().unwrap(), request, cdn);
    let Answer { status, headers, body } = answer;
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len())?;
    for header in headers {
        write!(stream, "{header}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
}

fn answer(state: &mut State, mut request: Request, cdn: SocketAddr) -> (Answer, Option<usize>) {
    let key = format!("{} {}", request.host, request.path);
    let range =
        request.range.map_or("-".into(), |(first, last)| format!("{first}-{}", last.map_or(String::new(), |l| l.to_string())));
    let line = format!("{key} {range} {}", request.authorization);
    if let Some(mut watch) = state.watch.take() {
        watch(&line, &mut state.files);
        state.watch = Some(watch);
    }
    state.log.push(line);
    let fault = state.faults.iter_mut().find(|(part, times, _)| *times > 0 && key.contains(part.as_str()));
    let fault = fault.map(|(_, times, fault)| {
        *times -= 1;
        fault.clone()
    });
    match fault {
        Some(Fault::Status(status, header)) => (Answer { status, headers: vec![header.into()], body: Vec::new() }, None),
        Some(Fault::Cut(bytes)) => (usual(state, &request, cdn), Some(bytes)),
        Some(Fault::NoRange | Fault::NoRangeCut(_)) => {
            request.range = None;
            let cut = if let Some(Fault::NoRangeCut(bytes)) = fault { Some(bytes) } else { None };
            (usual(state, &request, cdn), cut)
        }
        Some(Fault::Damage) => {
            let mut answer = usual(state, &request, cdn);
            if let Some(last) = answer.body.last_mut() {
                *last ^= 1;
            }
            (answer, None)
        }
        None => (usual(state, &request, cdn), None),
    }
}

fn usual(state: &State, request: &Request, cdn: SocketAddr) -> Answer {
    let plain = |status, header: &str| Answer { status, headers: vec![header.to_owned()], body: Vec::new() };
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if request.host == "cdn" {
        return file(state, parts.last().unwrap(), request);
    }
    if let ["plain", name] = parts[..] {
        if name == "SHA256SUMS" && state.sums {
            let lines = state.files.iter().map(|(name, bytes)| format!("{}  {name}\n", hex(&Sha256::digest(bytes))));
            return Answer { status: 200, headers: Vec::new(), body: lines.collect::<String>().into_bytes() };
        }
        return file(state, name, request);
    }
    if parts[0] == "plain" {
        return plain(404, "x: y");
    }
    if state.token.as_ref().is_some_and(|token| request.authorization != format!("Bearer {token}")) {
        return plain(401, "x-error-message: Invalid credentials");
    }
    match parts[..] {
        ["api", "models", "own", "model", "revision", "main"] => json_of(json!({"sha": state.main})),
        ["api", "models", "own", "model", "revision", _] => plain(404, "x-error-code: RevisionNotFound"),
        ["api", "models", "own", "model", "tree", _] => tree(state, query),
        ["own", "model", "resolve", _, name] if state.files.contains_key(name) => match is_large(name) {
            false => file(state, name, request),
            true => Answer {
                status: 302,
                headers: vec![
                    format!("location: http://{cdn}/files/{name}?signature=x"),
                    format!("x-linked-size: {}", state.files[name].len()),
                    format!("x-linked-etag: \"{}\"", hex(&Sha256::digest(&state.files[name]))),
                    format!("x-repo-commit: {COMMIT}"),
                ],
                body: Vec::new(),
            },
        },
        ["own", "model", ..] => plain(404, "x-error-code: EntryNotFound"),
        _ => plain(404, "x-error-code: RepoNotFound"),
    }
}

/// Two pages.
fn tree(state: &State, query: &str) -> Answer {
    let entries = state.files.iter().map(|(name, bytes)| {
        let mut git = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
        git.update(bytes);
        match is_large(name) {
            true => {
                let lfs = json!({"oid": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 135});
                json!({"type": "file", "oid": hex(&Sha1::digest(b"pointer")), "size": bytes.len(), "path": name, "lfs": lfs})
            }
            false => json!({"type": "file", "oid": hex(&git.finalize()), "size": bytes.len(), "path": name}),
        }
    });
    let mut entries: Vec<_> = entries.collect();
    entries.push(json!({"type": "directory", "oid": "0", "size": 0, "path": "figures"}));
    let second = entries.split_off(entries.len() / 2);
    match query.contains("cursor=2") {
        true => json_of(json!(second)),
        false => {
            let mut answer = json_of(json!(entries));
            answer.headers.push(format!("link: </api/models/own/model/tree/{COMMIT}?cursor=2>; rel=\"next\""));
            answer
        }
    }
}

fn file(state: &State, name: &str, request: &Request) -> Answer {
    let Some(bytes) = state.files.get(name) else {
        return Answer { status: 404, headers: Vec::new(), body: Vec::new() };
    };
    let etag = format!("\"{}\"", &hex(&Sha256::digest(bytes))[..12]);
    let headers = vec![format!("etag: {etag}")];
    let range = request.range.filter(|_| request.if_range.as_ref().is_none_or(|given| *given == etag));
    match range {
        Some((first, last)) => {
            let end = last.map_or(bytes.len(), |last| (last + 1).min(bytes.len()));
            let range = format!("content-range: bytes {first}-{}/{}", end - 1, bytes.len());
            Answer { status: 206, headers: [headers, vec![range]].concat(), body: bytes[first..end].to_vec() }
        }
        None => Answer { status: 200, headers, body: bytes.clone() },
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn json_of(value: serde_json::Value) -> Answer {
    Answer { status: 200, headers: Vec::new(), body: value.to_string().into_bytes() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
