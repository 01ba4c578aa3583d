//! Addresses of local processes. Chosen here and not by the processes, so that an address survives a restart.
//!
//! Ports lie below the kernel's ephemeral range: a port inside it could be given to an outgoing connection while its
//! owner is down, and a client that reconnects to a dead port of that range can even connect to itself.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr, TcpListener};

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

/// `count` different addresses on `host` that nobody listens on.
///
/// # Errors
/// Fewer are free.
pub fn free(host: IpAddr, count: usize) -> Result<Vec<SocketAddr>, PortError> {
    let high = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| first_ephemeral(&text))
        .unwrap_or(EPHEMERAL);
    let start = RandomState::new().hash_one(std::process::id());
    // Held until all are found, so that no port is found twice.
    let held: Vec<TcpListener> =
        candidates(start, high).filter_map(|port| TcpListener::bind((host, port)).ok()).take(count).collect();
    if held.len() < count {
        return Err(PortError::None { host, high, found: held.len(), wanted: count });
    }
    Ok(held.iter().filter_map(|listener| listener.local_addr().ok()).collect())
}

/// The address to listen on: `asked`, or a free port where its port is 0.
///
/// # Errors
/// Nothing can listen there.
pub fn listen(asked: SocketAddr) -> Result<SocketAddr, PortError> {
    if asked.port() != 0 {
        TcpListener::bind(asked).map_err(|source| PortError::Taken { address: asked, source })?;
        return Ok(asked);
    }
    let found = free(asked.ip(), 1)?;
    Ok(found.first().copied().unwrap_or(asked))
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
    fn ports_differ_and_are_free() {
        let host = IpAddr::from([127, 0, 0, 1]);
        let found = free(host, 3).unwrap();
        assert_eq!(found.len(), 3);
        assert!(found[0] != found[1] && found[1] != found[2] && found[0] != found[2]);
    }

    #[test]
    fn a_taken_address_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {address}: ")), "{error}");
    }
}
