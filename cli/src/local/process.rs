//! One child process: started, watched, ended. No child outlives m1ctl, however m1ctl ends.
//!
//! - A child is the leader of a process group of its own, so that a Ctrl-C on the terminal reaches m1ctl only, which then
//!   ends its children in order.
//! - On Linux the kernel kills a child whose parent thread is gone (`PR_SET_PDEATHSIG`). Children must therefore be
//!   started on a thread that lives as long as the program: m1ctl runs everything on its main thread.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Event;
use super::logs::LineSink;
use super::ports::Held;

/// How long the output of a dead process is still read: somebody else may hold the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why a process cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program is not beside m1ctl and not in PATH.
    #[error("{name} is neither in {} nor in PATH: build or install it beside m1ctl", beside.display())]
    Missing {
        /// Name of the program.
        name: &'static str,
        /// Folder of m1ctl.
        beside: PathBuf,
    },
    /// The kernel did not start it.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// What was to be started.
        program: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
}

/// Which process of a local deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// A worker, by its seat.
    Worker(usize),
    /// The router.
    Router,
}

/// Everything needed to start a process, again and again.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Which one it is.
    pub member: Member,
    /// The binary.
    pub program: PathBuf,
    /// Its arguments; `--listen-fd` is added.
    pub args: Vec<OsString>,
    /// What it serves on.
    pub socket: Option<Held>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// In words.
    pub how: String,
    /// The last lines it wrote.
    pub tail: Vec<String>,
}

impl Exit {
    fn new(status: std::io::Result<ExitStatus>, tail: Vec<String>) -> Self {
        match status {
            Ok(status) => Self { code: status.code(), how: in_words(status), tail },
            Err(error) => Self { code: None, how: format!("was lost: {error}"), tail },
        }
    }

    /// The last line that says something.
    pub fn last_words(&self) -> &str {
        self.tail.iter().rev().find(|line| !line.trim().is_empty()).map_or("it wrote nothing", String::as_str)
    }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(9)) => "was killed (SIGKILL)".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// What the owner of a process wants of it; only ever rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Terminate,
    Kill,
}

/// A running child. Dropping it kills the child.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    order: watch::Sender<Order>,
    task: JoinHandle<()>,
}

impl Process {
    /// Starts a process. Its end is told as [`Event::Exited`], its output goes to `sink`.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(launch: &Launch, sink: LineSink, events: mpsc::Sender<Event>) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::Start { program: launch.program.clone(), source };
        let mut command = Command::new(&launch.program);
        command.args(&launch.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(socket) = &launch.socket {
            command.arg("--listen-fd").arg(socket.number().to_string());
            hand_down(&mut command, socket.clone());
        }
        command.process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        let child = command.spawn().map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        let (order, orders) = watch::channel(Order::Run);
        let member = launch.member;
        let task = tokio::spawn(async move {
            let exit = run(child, sink, orders).await;
            // Nobody listens any more while the group stops.
            let _ = events.send(Event::Exited { member, exit }).await;
        });
        Ok(Self { pid, order, task })
    }

    /// The kernel's number of it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end: SIGTERM.
    pub fn terminate(&self) {
        self.order.send_if_modified(|order| rise(order, Order::Terminate));
    }

    /// Ends it: SIGKILL.
    pub fn kill(&self) {
        self.order.send_if_modified(|order| rise(order, Order::Kill));
    }

    /// Waits until it has ended and its end is told.
    pub async fn gone(&mut self) {
        let _ = (&mut self.task).await;
    }

    /// Whether it has ended and its end is told.
    pub fn is_gone(&self) -> bool {
        self.task.is_finished()
    }
}

fn rise(order: &mut Order, to: Order) -> bool {
    let rises = matches!((*order, to), (Order::Run, _) | (Order::Terminate, Order::Kill));
    if rises {
        *order = to;
    }
    rises
}

/// Owns the child until it has been waited for, so a signal never reaches a process that took over its number.
async fn run(mut child: Child, sink: LineSink, mut orders: watch::Receiver<Order>) -> Exit {
    let mut readers = tokio::task::JoinSet::new();
    if let Some(stream) = child.stdout.take() {
        readers.spawn(sink.clone().read(stream));
    }
    if let Some(stream) = child.stderr.take() {
        readers.spawn(sink.clone().read(stream));
    }
    let status = loop {
        let order = tokio::select! {
            status = child.wait() => break status,
            changed = orders.changed() => match changed {
                Ok(()) => *orders.borrow_and_update(),
                Err(_) => Order::Kill,
            },
        };
        match order {
            Order::Run => {}
            Order::Terminate => terminate(&child),
            Order::Kill => {
                let _ = child.start_kill();
                break child.wait().await;
            }
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, async { while readers.join_next().await.is_some() {} }).await;
    readers.shutdown().await;
    Exit::new(status, sink.tail())
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended this very moment; then there is nothing to ask for.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Leaves a socket open in the child, under the number that it has here. All others of this process are closed there.
fn hand_down(command: &mut Command, socket: Held) {
    let open = move || Ok(fcntl_setfd(&socket, FdFlags::empty())?);
    // SAFETY: the closure runs in the forked child before exec. It makes one plain system call (fcntl), touches no lock, allocates nothing and unwinds
    // nowhere; the socket is dropped here, not there.
    unsafe { command.pre_exec(open) };
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let set = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above took effect.
        if rustix::process::getppid() != Some(parent) {
            return Err(std::io::ErrorKind::NotConnected.into());
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child before exec. It makes two plain system calls (prctl, getppid), touches
    // no lock, allocates nothing (an error without text needs no memory) and unwinds nowhere.
    unsafe { command.pre_exec(set) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// Where `name` is: beside this program, else in PATH.
///
/// # Errors
/// It is in neither.
pub fn find(name: &'static str) -> Result<PathBuf, ProcessError> {
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf)).unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [beside.clone()].into_iter().chain(std::env::split_paths(&path));
    find_in(name, folders).ok_or(ProcessError::Missing { name, beside })
}

fn find_in(name: &str, folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.into_iter().filter(|folder| !folder.as_os_str().is_empty()).map(|folder| folder.join(name)).find(|path| runs(path))
}

fn runs(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch { member: Member::Worker(3), program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], socket: None }
    }

    fn start(script: &str) -> (Process, mpsc::Receiver<Event>) {
        let (events, received) = mpsc::channel(4);
        let sink = LineSink::new("pod 3".into(), 0, None);
        (Process::start(&shell(script), sink, events).unwrap(), received)
    }

    async fn exit(received: &mut mpsc::Receiver<Event>) -> Exit {
        match received.recv().await {
            Some(Event::Exited { member: Member::Worker(3), exit }) => exit,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_end_is_told_with_the_last_words() {
        let (_process, mut received) = start("echo out; echo no such shard >&2; exit 3");
        let exit = exit(&mut received).await;
        assert_eq!((exit.code, exit.how.as_str()), (Some(3), "ended with exit code 3"));
        assert!(exit.tail.contains(&"no such shard".to_owned()) && exit.tail.contains(&"out".to_owned()));
    }

    #[tokio::test]
    async fn terminate_asks_and_kill_ends() {
        let (process, mut received) = start("trap 'exit 7' TERM; while :; do :; done");
        process.terminate();
        let ended = exit(&mut received).await;
        // Before the trap is set SIGTERM itself ends the shell.
        assert!(ended.code == Some(7) || ended.how == "was ended by signal 15", "{ended:?}");
        let (mut process, mut received) = start("trap '' TERM; exec sleep 1000");
        process.terminate();
        process.kill();
        assert_eq!(exit(&mut received).await.how, "was killed (SIGKILL)");
        process.gone().await;
    }

    #[tokio::test]
    async fn a_process_inherits_its_socket_and_no_other() {
        let host = std::net::IpAddr::from([127, 0, 0, 1]);
        let held = crate::local::ports::free(host, 2).unwrap();
        let (own, other) = (held[0].number(), held[1].number());
        let seen = format!("[ -S /proc/self/fd/{own} ] && [ ! -e /proc/self/fd/{other} ] && echo \"$0\" \"$@\"");
        let launch = Launch { socket: Some(held[0].clone()), ..shell(&seen) };
        let (events, mut received) = mpsc::channel(4);
        let _process = Process::start(&launch, LineSink::new("pod 3".into(), 0, None), events).unwrap();
        let exit = exit(&mut received).await;
        assert_eq!((exit.code, exit.tail), (Some(0), vec![format!("--listen-fd {own}")]));
    }

    #[tokio::test]
    async fn a_dropped_process_dies() {
        let (process, mut received) = start("exec sleep 1000");
        drop(process);
        assert_eq!(exit(&mut received).await.how, "was killed (SIGKILL)");
    }

    #[test]
    fn a_program_is_looked_for_beside_first() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find_in("sh", [folder.path().into(), "/bin".into()]), Some("/bin/sh".into()));
        std::fs::write(folder.path().join("sh"), "").unwrap();
        assert_eq!(find_in("sh", ["".into(), folder.path().into(), "/bin".into()]), Some("/bin/sh".into()));
        assert_eq!(find_in("no-such-program", ["/bin".into()]), None);
    }

    #[test]
    fn a_missing_program_says_where_it_was_looked_for() {
        let error = find("no-such-program").unwrap_err().to_string();
        assert!(error.starts_with("no-such-program is neither in /") && error.contains("nor in PATH"), "{error}");
    }
}
