//! One worker process without a deployment around it: a stranger, for who asks at the wrong address.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::{START, binary, demo, eventually};

/// A running `m1-worker` with the demo model, which waits for its placement. Killed when dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Worker {
    /// Starts pod `pod` of a group: `NAMESPACE/NAME/UID/GROUP`.
    pub fn start(group: &str, pod: u16) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let log = scratch.path().join("worker.log");
        let create = || std::fs::File::options().create(true).append(true).open(&log).expect("the log is created");
        let child = Command::new(binary("m1-worker"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--member", group, "--pod", &pod.to_string()])
            .arg("--model")
            .arg(demo())
            .stdin(Stdio::null())
            .stdout(create())
            .stderr(create())
            .spawn()
            .expect("m1-worker starts");
        let mut worker = Self { child, address: SocketAddr::from(([0; 4], 0)) };
        eventually("m1-worker says where it listens", START, || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let line = said.lines().find(|line| line.contains("m1-worker listens"));
            let address = line.and_then(|line| line.split("address=").nth(1)?.split_whitespace().next()?.parse().ok());
            worker.address = address.unwrap_or(worker.address);
            address.is_some()
        });
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
