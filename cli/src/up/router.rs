//! The router of a local deployment: its command line, and when it can serve.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::http::Client;
use crate::local::LocalPlan;
use crate::local::ports::Held;
use crate::local::process::{Launch, Member};

/// Between two looks at `/ready`.
const POLL: Duration = Duration::from_millis(100);
/// The socket of a router that has died still takes connections, for the next one: whoever is not answered asks again after this.
const ANSWER: Duration = Duration::from_secs(5);

/// The router of `plan`, listening on `socket`.
pub fn launch(program: PathBuf, served_name: &str, plan: &LocalPlan, socket: Held) -> Launch {
    let flags = [
        ("--listen", socket.address().to_string()),
        ("--served-name", served_name.to_owned()),
        ("--max-context", plan.limits.max_context.to_string()),
        ("--drain-seconds", plan.limits.drain_seconds.to_string()),
        ("--deployment-id", plan.whose.to_string()),
    ];
    let groups = plan.pods.chunk_by(|a, b| a.group == b.group).map(|pods| {
        let addresses: Vec<String> = pods.iter().map(|pod| pod.address.to_string()).collect();
        ("--workers", addresses.join(","))
    });
    let mut args = vec!["--model".into(), plan.model.clone().into_os_string()];
    args.extend(flags.into_iter().chain(groups).flat_map(|(flag, value)| [flag.into(), value.into()]));
    Launch { member: Member::Router, program, args, socket: Some(socket) }
}

/// Completes when the router at `address` says that a group serves; what it says until then is in `said`.
pub async fn ready(address: SocketAddr, said: &Mutex<String>) {
    let client = Client::default();
    let url = format!("http://{}/ready", reachable(address));
    loop {
        let words = match tokio::time::timeout(ANSWER, client.get(&url)).await {
            Ok(Ok((200, _))) => return,
            Ok(Ok((status, body))) => format!("/ready is {status}: {}", body.trim()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("/ready is not answered within {} s", ANSWER.as_secs()),
        };
        *said.lock().unwrap_or_else(PoisonError::into_inner) = words;
        tokio::time::sleep(POLL).await;
    }
}

/// Where a client of this machine reaches a listener: not every system connects to "any address".
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use m1_arch::{Bytes, ExpertSet};

    use super::*;
    use crate::local::Limits;
    use crate::local::placement::LocalPod;

    #[test]
    fn the_router_is_told_every_group() {
        let pod = |group, pod: u16| LocalPod {
            group,
            pod,
            name: String::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 20_000 + 10 * group as u16 + pod)),
            holds: ExpertSet::empty(1, 1),
            bytes: Bytes(0),
        };
        let limits = Limits { slots: 1, kv_tokens: 9, max_context: 9, prefill_chunk: 1, expert_wait: 30, drain_seconds: 9 };
        let pods = vec![pod(0, 0), pod(0, 1), pod(1, 0)];
        let whose = "local/m1/0b54".parse().unwrap();
        let plan = LocalPlan { model: "/m".into(), whose, pods, sockets: Vec::new(), limits, threads: None };
        let socket = crate::local::ports::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = socket.address();
        let launch = launch("m1-router".into(), "M1", &plan, socket);
        let line = launch.args.join(std::ffi::OsStr::new(" ")).into_string().unwrap();
        let expected = format!(
            "--model /m --listen {address} --served-name M1 --max-context 9 --drain-seconds 9 --deployment-id local/m1/0b54 \
             --workers 127.0.0.1:20000,127.0.0.1:20001 --workers 127.0.0.1:20010"
        );
        assert_eq!(line, expected);
    }

    #[test]
    fn any_address_is_reached_at_home() {
        assert_eq!(reachable("0.0.0.0:80".parse().unwrap()), "127.0.0.1:80".parse().unwrap());
        assert_eq!(reachable("[::]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
        assert_eq!(reachable("10.0.0.1:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    }
}
