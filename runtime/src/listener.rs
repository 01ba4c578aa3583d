//! Where a server listens: an address that it binds itself, or a socket that whoever started it has bound, holds, and hands down. A socket that is held by
//! the one who starts belongs to nobody else for as long as that one lives, whatever becomes of the process that serves on it. Must not know any component.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;
use tokio::net::{TcpListener, ToSocketAddrs, lookup_host};

/// The first number that can be handed down: those before it are standard input, output and error.
pub const FIRST_FD: RawFd = 3;

/// Connections that may wait to be taken: as many as tokio asks for where it binds. Whoever bound the socket may have asked for fewer, and a burst of clients
/// beyond that waits a second each.
const BACKLOG: i32 = 1024;

/// Why nobody is listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, or is not this machine's.
    #[error("--listen: cannot bind {address}")]
    Bind {
        /// What was asked for.
        address: String,
        /// The system's word.
        source: io::Error,
    },
    /// Nothing that can be listened on was handed down under this number.
    #[error("--listen-fd: given {fd}, allowed: the number of an open socket that listens")]
    Socket {
        /// The number.
        fd: RawFd,
        /// The system's word.
        source: io::Error,
    },
    /// The socket that was handed down is bound to another address.
    #[error("--listen-fd: given {fd}, which listens on {own}, allowed: a socket that listens on {address}")]
    Elsewhere {
        /// The number.
        fd: RawFd,
        /// Where it listens.
        own: SocketAddr,
        /// What was asked for.
        address: String,
    },
}

impl ListenError {
    /// One CamelCase word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "AddressNotBound",
            Self::Socket { .. } | Self::Elsewhere { .. } => "BadSocket",
        }
    }
}

/// Listens on `address`: by the socket number `inherited` where there is one, else by binding it. Call it once for a number, inside a tokio runtime.
///
/// # Errors
/// See [`ListenError`].
pub async fn listen(address: impl ToSocketAddrs + fmt::Display, inherited: Option<RawFd>) -> Result<TcpListener, ListenError> {
    let shown = address.to_string();
    let Some(fd) = inherited else {
        return TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address: shown, source });
    };
    let failed = |source| ListenError::Socket { fd, source };
    let listener = take(fd).map_err(failed)?;
    let own = listener.local_addr().map_err(failed)?;
    let mut wanted = lookup_host(address).await.map_err(|source| ListenError::Bind { address: shown.clone(), source })?;
    if !wanted.any(|wanted| wanted == own) {
        return Err(ListenError::Elsewhere { fd, own, address: shown });
    }
    TcpListener::from_std(listener).map_err(failed)
}

/// The listener with this number, from now on owned, and handed down to no process that this one starts.
fn take(fd: RawFd) -> io::Result<std::net::TcpListener> {
    if fd < FIRST_FD {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: borrowed for two system calls that say whether the number is open at all; it is not -1.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(borrowed)?;
    if !socket_acceptconn(borrowed)? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and whoever names it on a command line gives it away: no other part of this process knows the number.
    let listener = std::net::TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    listener.set_nonblocking(true)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    fn held() -> (std::net::TcpListener, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn a_socket_outlives_who_served_on_it() {
        let (held, address) = held();
        for life in 0..2 {
            // As a child has it: the same socket under a number of its own.
            let fd = held.try_clone().unwrap().into_raw_fd();
            let listener = listen(address, Some(fd)).await.unwrap();
            assert_eq!(listener.local_addr().unwrap(), address);
            let flags = fcntl_getfd(&listener).unwrap();
            assert!(flags.contains(FdFlags::CLOEXEC), "grandchildren would hold it too");
            let client = std::net::TcpStream::connect(address).unwrap();
            assert_eq!(listener.accept().await.unwrap().1, client.local_addr().unwrap(), "life {life}");
            drop(listener);
            let taken = listen(address, None).await.unwrap_err();
            assert!(taken.to_string().starts_with(&format!("--listen: cannot bind {address}")), "{taken}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_served_on_is_named() {
        let (held, address) = held();
        let error = async |fd| listen(address, Some(fd)).await.unwrap_err().to_string();
        let socket = |fd| format!("--listen-fd: given {fd}, allowed: the number of an open socket that listens");
        assert_eq!(error(1).await, socket(1));
        assert_eq!(error(9_999).await, socket(9_999));
        let client = std::net::TcpStream::connect(address).unwrap();
        assert_eq!(error(client.as_raw_fd()).await, socket(client.as_raw_fd()));
        let fd = held.try_clone().unwrap().into_raw_fd();
        let elsewhere = listen("127.0.0.1:1", Some(fd)).await.unwrap_err().to_string();
        let expected =
            format!("--listen-fd: given {fd}, which listens on {address}, allowed: a socket that listens on 127.0.0.1:1");
        assert_eq!(elsewhere, expected);
    }
}
