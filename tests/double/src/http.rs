//! As much of an HTTP/1.1 server as stand-ins need: requests with a length, answers whole or chunked, connections kept alive. Its clients are proxies and suites on
//! loopback; it defends itself against nothing but length.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest head.
const HEAD: usize = 64 << 10;
/// Longest body.
const BODY: usize = 64 << 20;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// GET, POST, ..
    pub method: String,
    /// Without its query.
    pub path: String,
    /// All of it.
    pub body: Vec<u8>,
}

/// One client's connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    /// What is to be sent with the next flush.
    pub out: Vec<u8>,
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request on its connection.
    fn answer(&self, request: Request, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send;
}

/// Serves an address for ever in a task. Gives where.
///
/// # Errors
/// The address is taken.
pub async fn spawn(address: &str, handler: impl Handler) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    tokio::spawn(accept(listener, Arc::new(handler)));
    Ok(bound)
}

async fn accept(listener: TcpListener, handler: Arc<impl Handler>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            let mut connection = Connection { stream, read: Vec::new(), out: Vec::new() };
            // A connection that breaks is its client's affair.
            let _ = connection.serve(&*handler).await;
        });
    }
}

impl Connection {
    async fn serve(&mut self, handler: &impl Handler) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        while let Some(request) = self.request().await? {
            handler.answer(request, self).await?;
            self.flush().await?;
        }
        Ok(())
    }

    /// A whole answer.
    pub fn whole(&mut self, status: &str, kind: &str, body: &[u8]) {
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
        self.out.extend_from_slice(head.as_bytes());
        self.out.extend_from_slice(body);
    }

    /// The head of an answer in chunks.
    pub fn begin_chunks(&mut self, kind: &str) {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n");
        self.out.extend_from_slice(head.as_bytes());
    }

    /// One chunk; the empty one ends the answer.
    pub fn chunk(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Sends what is to be sent.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    async fn request(&mut self) -> io::Result<Option<Request>> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if self.read.len() > HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        };
        let (method, path, length) = head(&self.read[..end]).ok_or(io::ErrorKind::InvalidData)?;
        while self.read.len() < end + length {
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        }
        let body = self.read[end..end + length].to_vec();
        self.read.drain(..end + length);
        Ok(Some(Request { method, path, body }))
    }
}

/// Method, path and length of the body; none where that is not how a request reads.
fn head(bytes: &[u8]) -> Option<(String, String, usize)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let path = target.split('?').next()?.to_owned();
    let mut length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok().filter(|length| *length <= BODY)?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return None;
        }
    }
    Some((method, path, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let read = |text: &str| head(text.as_bytes()).map(|(method, path, length)| format!("{method} {path} {length}"));
        assert_eq!(read("POST /v1/x?y=1 HTTP/1.1\r\nContent-Length: 7\r\n\r\n").as_deref(), Some("POST /v1/x 7"));
        assert_eq!(read("GET / HTTP/1.1\r\n\r\n").as_deref(), Some("GET / 0"));
        for bad in
            ["GET\r\n\r\n", "GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n", "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
