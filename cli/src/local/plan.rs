//! What a local group is before it runs: its pods, what they may use, whose they are, and the sockets they will serve on.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use m1_arch::ExpertSet;
use m1_runtime::member::{self, Deployment};
use m1_weights::Checkpoint;

use super::placement::LocalPod;
use super::ports::{self, Held, PortError};
use super::process::{Launch, Member};

/// The namespace of everything that runs as processes of one machine.
const NAMESPACE: &str = "local";

/// What a worker may use; see `m1-worker serve --help`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// State slots: sequences at once.
    pub slots: u32,
    /// Tokens of the KV pool.
    pub kv_tokens: u32,
    /// Window of one sequence.
    pub max_context: u32,
    /// Prompt tokens in one step.
    pub prefill_chunk: u32,
    /// Seconds that a token waits for an expert that nobody holds.
    pub expert_wait: u32,
    /// Seconds that what runs may go on once a worker is told to end.
    pub drain_seconds: u32,
}

/// Workers that are decided and not started. A worker's place in `pods` is its seat.
#[derive(Debug, Clone)]
pub struct LocalPlan {
    /// Folder of the checkpoint.
    pub model: PathBuf,
    /// Whose they are. Every start is a deployment of its own: what an earlier or another one left running is not believed.
    pub whose: Deployment,
    /// The pods of all groups.
    pub pods: Vec<LocalPod>,
    /// Where they listen, by seat.
    pub sockets: Vec<Held>,
    /// The same for every worker.
    pub limits: Limits,
    /// Threads of each worker, where the spec limits them.
    pub threads: Option<u32>,
}

impl LocalPlan {
    /// One entry of `groups` per replica group, with what each of its pods holds. Gives every pod an address and counts
    /// what it reads. `name` is the deployment's.
    ///
    /// # Errors
    /// No port is free.
    pub fn new(checkpoint: &Checkpoint, name: &str, groups: Vec<Vec<ExpertSet>>, limits: Limits) -> Result<Self, PortError> {
        let many = groups.len() > 1;
        let count = groups.iter().map(Vec::len).sum();
        let sockets = ports::free(IpAddr::V4(Ipv4Addr::LOCALHOST), count)?;
        let mut addresses = sockets.iter().map(Held::address);
        let mut pods = Vec::with_capacity(count);
        for (group, holds) in groups.into_iter().enumerate() {
            for ((pod, holds), address) in holds.into_iter().enumerate().zip(&mut addresses) {
                let name = if many { format!("pod {group}/{pod}") } else { format!("pod {pod}") };
                let bytes = m1_arch::Bytes(m1_weights::plan_read(checkpoint, &holds).bytes);
                pods.push(LocalPod { group, pod: pod as u16, name, address, holds, bytes });
            }
        }
        Ok(Self { model: checkpoint.dir().to_path_buf(), whose: fresh(name), pods, sockets, limits, threads: None })
    }

    /// Who should answer at a seat's address.
    pub fn member(&self, seat: usize) -> member::Member {
        let pod = &self.pods[seat];
        self.whose.member(pod.group.to_string(), pod.pod)
    }

    /// Names by seat.
    pub fn names(&self) -> Vec<String> {
        self.pods.iter().map(|pod| pod.name.clone()).collect()
    }

    /// The worker of a seat, ready to be started.
    pub fn launch(&self, program: &Path, seat: usize) -> Launch {
        let pod = &self.pods[seat];
        let threads = self.threads.map_or_else(|| threads_per_worker(cores(), self.pods.len()), |threads| threads as usize);
        let flags = [
            ("--pod", pod.pod.to_string()),
            ("--member", format!("{}/{}", self.whose, pod.group)),
            ("--listen", pod.address.to_string()),
            ("--threads", threads.to_string()),
            ("--slots", self.limits.slots.to_string()),
            ("--kv-tokens", self.limits.kv_tokens.to_string()),
            ("--max-context", self.limits.max_context.to_string()),
            ("--prefill-chunk", self.limits.prefill_chunk.to_string()),
            ("--expert-wait", self.limits.expert_wait.to_string()),
            ("--drain-seconds", self.limits.drain_seconds.to_string()),
        ];
        let mut args = vec!["serve".into(), "--model".into(), self.model.clone().into_os_string()];
        args.extend(flags.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]));
        Launch { member: Member::Worker(seat), program: program.to_path_buf(), args, socket: self.sockets.get(seat).cloned() }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads of each of `workers` workers on a machine with `cores` cores.
fn threads_per_worker(cores: usize, workers: usize) -> usize {
    (cores / workers.max(1)).max(1)
}

/// A deployment that nobody has had before: 128 bits of the system's randomness.
fn fresh(name: &str) -> Deployment {
    let draw = || RandomState::new().hash_one(std::process::id());
    Deployment { namespace: NAMESPACE.to_owned(), name: name.to_owned(), uid: format!("{:016x}{:016x}", draw(), draw()) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn cores_are_shared() {
        assert_eq!(threads_per_worker(16, 2), 8);
        assert_eq!(threads_per_worker(2, 4), 1);
        assert_eq!(threads_per_worker(7, 2), 3);
    }

    #[test]
    fn a_launch_is_the_workers_command_line() {
        let pod = LocalPod {
            group: 0,
            pod: 1,
            name: "pod 1".into(),
            address: SocketAddr::from(([127, 0, 0, 1], 20_001)),
            holds: ExpertSet::full(8, 32),
            bytes: m1_arch::Bytes(1),
        };
        let limits = Limits { slots: 4, kv_tokens: 100, max_context: 90, prefill_chunk: 8, expert_wait: 30, drain_seconds: 9 };
        let whose = Deployment { namespace: "local".into(), name: "m1".into(), uid: "0b54".into() };
        let plan = LocalPlan { model: "/m".into(), whose, pods: vec![pod], sockets: Vec::new(), limits, threads: Some(3) };
        let launch = plan.launch(Path::new("/bin/m1-worker"), 0);
        let line = launch.args.join(std::ffi::OsStr::new(" ")).into_string().unwrap();
        assert_eq!(
            line,
            "serve --model /m --pod 1 --member local/m1/0b54/0 --listen 127.0.0.1:20001 --threads 3 --slots 4 --kv-tokens 100 \
                 --max-context 90 --prefill-chunk 8 --expert-wait 30 --drain-seconds 9"
        );
    }

    #[test]
    fn no_two_starts_are_the_same_deployment() {
        let [first, second] = [fresh("m1"), fresh("m1")];
        assert_eq!((first.namespace.as_str(), first.name.as_str(), first.uid.len()), ("local", "m1", 32));
        assert_ne!(first.uid, second.uid);
        assert_eq!(first.to_string().parse(), Ok(first));
    }
}
