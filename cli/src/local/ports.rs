//! Addresses of local processes: sockets that m1ctl binds, holds for as long as it runs, and hands down to the processes that serve on them. So no address
//! is chosen twice, however many m1ctl start at once, and an address survives its process: whoever connects meanwhile waits in the kernel's queue for the next
//! one. With m1ctl the kernel ends its children, so nobody is left who holds an address.
//!
//! Ports lie below the kernel's ephemeral range: those inside it are given to outgoing connections.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

/// First port that is tried: below it stand well-known services.
const LOWEST: u16 = 20_000;
/// First ephemeral port where the kernel does not say: Linux's default.
const EPHEMERAL: u16 = 32_768;

/// Why an address cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Something listens there, or the host is not of this machine.
    #[error("cannot listen on {address}: {source}")]
    Taken {
        /// What was asked for.
        address: SocketAddr,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// No free port is left.
    #[error("{found} free ports found on {host} between {LOWEST} and {high}, {wanted} needed")]
    None {
        /// Where.
        host: IpAddr,
        /// First port above those tried.
        high: u16,
        /// Free ports.
        found: usize,
        /// Needed ports.
        wanted: usize,
    },
}

/// A socket that listens. It does so until the last clone is dropped, here and in the process it was handed down to.
#[derive(Debug, Clone)]
pub struct Held {
    listener: Arc<TcpListener>,
    address: SocketAddr,
}

impl Held {
    fn bind(address: SocketAddr) -> std::io::Result<Self> {
        // Whether it is bound and listens is one question: of two who bind at the same moment one is refused here.
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok(Self { listener: Arc::new(listener), address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its number, in this process and in those that inherit it.
    pub fn number(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// `count` sockets on `host`, each on a port of its own.
///
/// # Errors
/// Fewer are free.
pub fn free(host: IpAddr, count: usize) -> Result<Vec<Held>, PortError> {
    let high = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| first_ephemeral(&text))
        .unwrap_or(EPHEMERAL);
    let start = RandomState::new().hash_one(std::process::id());
    let bound = candidates(start, high).filter_map(|port| Held::bind((host, port).into()).ok());
    let held: Vec<Held> = bound.take(count).collect();
    match held.len() < count {
        true => Err(PortError::None { host, high, found: held.len(), wanted: count }),
        false => Ok(held),
    }
}

/// A socket on the address that was asked for, or on a free port of its host where the port is 0.
///
/// # Errors
/// Nothing can listen there.
pub fn listen(asked: SocketAddr) -> Result<Held, PortError> {
    let taken = |source| PortError::Taken { address: asked, source };
    match asked.port() {
        0 => free(asked.ip(), 1)?.pop().ok_or_else(|| taken(std::io::ErrorKind::AddrNotAvailable.into())),
        _ => Held::bind(asked).map_err(taken),
    }
}

fn first_ephemeral(text: &str) -> Option<u16> {
    text.split_whitespace().next()?.parse().ok().filter(|&port| port > LOWEST)
}

/// Every port from [`LOWEST`] up to `high`, once, from a place that differs from run to run.
fn candidates(start: u64, high: u16) -> impl Iterator<Item = u16> {
    let count = high - LOWEST;
    let first = (start % u64::from(count)) as u16;
    (0..count).map(move |step| LOWEST + ((u32::from(first) + u32::from(step)) % u32::from(count)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_candidate_comes_once_and_none_is_ephemeral() {
        let mut seen: Vec<u16> = candidates(7, 20_010).collect();
        assert_eq!(seen[0], 20_007);
        seen.sort_unstable();
        assert_eq!(seen, (20_000..20_010).collect::<Vec<_>>());
    }

    #[test]
    fn the_kernels_range_is_obeyed_where_it_leaves_room() {
        assert_eq!(first_ephemeral("32768\t60999\n"), Some(32_768));
        assert_eq!(first_ephemeral("1024 65535"), None);
        assert_eq!(first_ephemeral(""), None);
    }

    #[test]
    fn no_port_is_chosen_twice_however_many_choose_at_once() {
        let host = IpAddr::from([127, 0, 0, 1]);
        let held: Vec<Held> = std::thread::scope(|scope| {
            let choosing: Vec<_> = (0..16).map(|_| scope.spawn(|| free(host, 8).unwrap())).collect();
            choosing.into_iter().flat_map(|chosen| chosen.join().unwrap()).collect()
        });
        let ports: std::collections::BTreeSet<u16> = held.iter().map(|held| held.address().port()).collect();
        assert_eq!(ports.len(), 16 * 8);
        assert!(held.iter().all(|held| Held::bind(held.address()).is_err()), "they are held, not only found");
    }

    #[test]
    fn a_taken_address_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {address}: ")), "{error}");
        assert_ne!(listen("127.0.0.1:0".parse().unwrap()).unwrap().address().port(), 0);
    }
}
