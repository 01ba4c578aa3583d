//! This process: what it uses, as Prometheus' own `process_*` family has it, and its end where threads must be left behind. The
//! usage is read from `/proc`; elsewhere than on Linux nothing is known.

/// What the process uses now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Time on a CPU since the start, user and system.
    pub cpu_seconds: f64,
    /// Memory that is resident, mapped files included.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Start, in seconds since 1970.
    pub start_seconds: f64,
    /// Files, sockets and pipes that are open.
    pub open_fds: u64,
    /// How many may be; none where there is no limit.
    pub max_fds: Option<u64>,
}

/// What this process uses; none where the system does not say.
pub fn usage() -> Option<Usage> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let system = std::fs::read_to_string("/proc/stat").ok()?;
    // The folder that is being read is open itself.
    let open_fds = (std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1);
    let max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    parse(&stat, &system, ticks, rustix::param::page_size() as u64).map(|usage| Usage { open_fds, max_fds, ..usage })
}

/// Ends the process at once. Unlike [`std::process::exit`] it runs no destructor of a library: one that a thread is still in the
/// middle of would lose its state under that thread and crash.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any code, touches no memory of the process and does not return.
    unsafe { libc::_exit(code) }
}

/// Raises the number of files that may be open to what the system allows, and says how many that are; none where there is no limit. Many systems give
/// 1024 until a process asks.
pub fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current }
}

/// Bytes that were written to a TCP socket and that the other side has not confirmed; none where the system does not say.
pub fn unsent(socket: &impl std::os::fd::AsRawFd) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one integer, for which there is room.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    (asked == 0).then(|| usize::try_from(bytes).unwrap_or_default())
}

/// Memory that was needed once for something large goes back to the system when that is gone. Left to itself glibc learns from the first large block that
/// it frees to keep such blocks, up to 32 MB each, and a server that once read some long requests holds their memory for good. Call it before there are
/// other threads.
pub fn give_back_large_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Bytes. Smaller blocks are what most requests are made of, and stay.
        const LARGE: libc::c_int = 256 << 10;
        // SAFETY: sets numbers of the allocator; nobody else allocates meanwhile.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}

/// Gives back whatever pages hold nothing any more. Takes milliseconds, in which other threads wait where they allocate.
pub fn give_back_small_memory() {
    // SAFETY: may be called at any time from any thread.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of this process in memory; 0 where the system does not say.
pub fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or_default().saturating_mul(rustix::param::page_size() as u64)
}

/// Fields of `/proc/self/stat` (see `man 5 proc_pid_stat`) and the boot time of `/proc/stat`.
fn parse(stat: &str, system: &str, ticks: f64, page: u64) -> Option<Usage> {
    // The second field is the name in parentheses and may hold anything; the third follows its last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let boot: f64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Usage {
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
        resident_bytes: field(24)? * page,
        threads: field(20)?,
        start_seconds: boot + field(22)? as f64 / ticks,
        open_fds: 0,
        max_fds: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_read_is_told() {
        use std::io::Write;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(unsent(&client), Some(0));
        client.set_nonblocking(true).unwrap();
        while client.write(&[0; 4096]).is_ok() {}
        assert!(unsent(&client).is_some_and(|bytes| bytes > 0));
        drop(listener);
    }

    #[test]
    fn files_may_be_as_many_as_the_system_allows() {
        let most = raise_open_files();
        assert_eq!(most, rustix::process::getrlimit(rustix::process::Resource::Nofile).current);
    }

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 1000 4096 25 18446744073709551615 1 1";
        let usage = parse(stat, "cpu 1 2\nbtime 500\n", 100.0, 4096).unwrap();
        let expected =
            Usage { cpu_seconds: 2.0, resident_bytes: 25 * 4096, threads: 9, start_seconds: 510.0, open_fds: 0, max_fds: None };
        assert_eq!(usage, expected);
        assert_eq!(parse("7 (a) S 1", "btime 1\n", 100.0, 1), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_something() {
        let usage = usage().unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.open_fds >= 3 && usage.threads >= 1, "{usage:?}");
    }
}
