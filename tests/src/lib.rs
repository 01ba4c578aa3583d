//! Suites that cross crates: they run the built binaries as a user would. This library starts and stops them.
//! Binaries are looked for in the folder of the test executable; `make test` builds them first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod tensors;
mod worker;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use worker::Worker;

/// A start takes a second or two; many at once on few cores take longer.
const START: Duration = Duration::from_secs(400);

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Path of a built binary.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let path = test.ancestors().nth(2).expect("target/PROFILE/deps/test").join(name);
    assert!(path.exists(), "{} is not built: run `make build`", path.display());
    path
}

/// Runs `m1ctl` with arguments to its end. Returns (success, stdout, stderr).
pub fn m1ctl<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> (bool, String, String) {
    let out = Command::new(binary("m1ctl")).args(arguments).stdin(Stdio::null()).output().expect("m1ctl starts");
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into(), String::from_utf8_lossy(&out.stderr).into())
}

/// A running `m1ctl up`. Ended with SIGTERM when dropped.
pub struct Up {
    child: Child,
    /// http://HOST:PORT of the router.
    pub url: String,
    /// Everything it writes on stderr.
    pub log: PathBuf,
    scratch: tempfile::TempDir,
}

impl Up {
    /// Starts a model folder on `experts` worker processes.
    pub fn start(model: &Path, experts: usize) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let cr = scratch.path().join("cr.yaml");
        std::fs::write(&cr, custom_resource(model, experts)).expect("the CR is written");
        let log = scratch.path().join("up.log");
        let stderr = std::fs::File::create(&log).expect("the log is created");
        let mut child = Command::new(binary("m1ctl"))
            .args(["up", "--listen", "127.0.0.1:0", "--state-dir"])
            .arg(scratch.path())
            .arg("-f")
            .arg(&cr)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("m1ctl starts");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        // On a thread of its own: a read has no limit, and a test must have one.
        let (sender, url) = mpsc::channel();
        std::thread::spawn(move || {
            if let Some(url) = lines.map_while(Result::ok).find_map(|l| l.strip_prefix("ready ").map(str::to_owned)) {
                let _ = sender.send(url);
            }
        });
        let mut up = Self { child, url: String::new(), log, scratch };
        match url.recv_timeout(START) {
            Ok(url) => up.url = url,
            Err(why) => panic!("`m1ctl up`: no `ready` ({why}):\n{}", up.read_log()),
        }
        up
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What runs where: its `group.json`.
    pub fn state(&self) -> Value {
        let text = std::fs::read_to_string(self.scratch.path().join("group.json")).expect("it is there while m1ctl runs");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Addresses of its workers, in the order of their pods.
    pub fn workers(&self) -> Vec<String> {
        let pods = self.state()["pods"].as_array().expect("pods").clone();
        pods.iter().map(|pod| pod["address"].as_str().expect("an address").to_owned()).collect()
    }

    /// Sends SIGTERM and waits; panics unless it ends with success. Returns the processes it had started.
    pub fn stop(mut self) -> Vec<u32> {
        let children = self.processes();
        self.terminate();
        let status = wait(&mut self.child, Duration::from_secs(30)).expect("m1ctl up ends after SIGTERM");
        assert!(status.success(), "m1ctl up ended with {status}:\n{}", self.read_log());
        children
    }

    /// Ids of the processes it runs.
    pub fn processes(&self) -> Vec<u32> {
        children_of(self.child.id())
    }

    /// Its log so far.
    pub fn read_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// POSTs JSON. Returns status and body.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_text(path, &body.to_string())
    }

    /// POSTs bytes as they are. Returns status and body.
    pub fn post_text(&self, path: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.post_raw(path, body.as_bytes());
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}")))
    }

    /// POSTs bytes as they are. Returns status and text.
    pub fn post_raw(&self, path: &str, body: &[u8]) -> (u16, String) {
        let answer = agent().post(format!("{}{path}", self.url)).header("content-type", "application/json").send(body);
        text_of(answer)
    }

    /// POSTs JSON and returns as soon as the answer begins; dropping what is returned closes the connection.
    pub fn open_stream(&self, path: &str, body: &Value) -> impl Sized + use<> {
        let answer = agent().post(format!("{}{path}", self.url)).header("content-type", "application/json").send(body.to_string());
        let answer = answer.expect("the router answers");
        assert_eq!(answer.status().as_u16(), 200);
        answer
    }

    /// The value of a metric that has one series.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// GETs a path. Returns status and text.
    pub fn get(&self, path: &str) -> (u16, String) {
        text_of(agent().get(format!("{}{path}", self.url)).call())
    }

    fn terminate(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.terminate();
        if wait(&mut self.child, Duration::from_secs(20)).is_none() {
            let _ = self.child.kill();
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(300))).build().into()
}

fn text_of(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, String) {
    let mut answer = answer.expect("the router answers");
    (answer.status().as_u16(), answer.body_mut().read_to_string().expect("a body"))
}

fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the child can be waited for") {
            return Some(status);
        }
        if began.elapsed() > limit {
            return None;
        }
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Waits for a condition of another process; panics with `what` after `limit`.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < limit, "not seen within {limit:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Ends a process at once: SIGKILL.
pub fn kill(process: u32) {
    let pid = rustix::process::Pid::from_raw(process as i32).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
}

/// Whether a process with this id runs (a zombie does not).
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    processes
        .filter(|pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok()) == Some(parent)
        })
        .collect()
}

/// A custom resource that serves a folder.
pub fn custom_resource(model: &Path, experts: usize) -> String {
    format!(
        "apiVersion: serving.minimax-m1.dev/v1alpha1\nkind: MiniMaxM1Deployment\nmetadata: {{name: m1-test}}\nspec:\n  \
         model:\n    servedName: MiniMax-M1-demo\n    source: {{hostPath: {{path: {}}}}}\n    maxContextTokens: 4096\n  \
         parallelism: {{tensor: 1, expert: {experts}}}\n",
        model.display()
    )
}

/// The demo model's folder.
pub fn demo() -> PathBuf {
    root().join("demo/m1-demo")
}

/// The demo model with another end token, so that it never stops by itself.
pub fn endless() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a scratch folder");
    for entry in std::fs::read_dir(demo()).expect("the demo model") {
        let path = entry.expect("an entry").path();
        let copy = folder.path().join(path.file_name().expect("a name"));
        if path.ends_with("tokenizer_config.json") {
            let text = std::fs::read_to_string(&path).expect("tokenizer_config.json");
            let mut config: Value = serde_json::from_str(&text).expect("JSON");
            config["eos_token"] = Value::from("<speech>");
            std::fs::write(copy, config.to_string()).expect("written");
        } else {
            std::os::unix::fs::symlink(path, copy).expect("linked");
        }
    }
    folder
}
