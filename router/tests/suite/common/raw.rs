//! A client over a bare socket, which sends and stops as it likes.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PATIENCE;

/// A connection.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn to(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Posts JSON.
    pub async fn post(&mut self, path: &str, body: &Value) {
        self.send(post(path, body)).await;
    }

    /// Says that nothing more comes.
    pub async fn finish(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Resets the connection.
    pub fn reset(self) {
        let socket = rustix::net::sockopt::set_socket_linger(&self.0, Some(Duration::ZERO));
        socket.unwrap();
    }

    /// All that comes until a text is there.
    pub async fn until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        let read = async {
            while !String::from_utf8_lossy(&all).contains(text) {
                let mut part = [0u8; 4096];
                match self.0.read(&mut part).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => all.extend_from_slice(&part[..count]),
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, read).await.is_ok();
        let all = String::from_utf8_lossy(&all).into_owned();
        assert!(all.contains(text), "no {text:?} in {all:?}{}", if in_time { ", and it ended" } else { ", and then nothing" });
        all
    }

    /// All that comes until the other side closes.
    pub async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let read = async {
            loop {
                let mut part = [0u8; 4096];
                match self.0.read(&mut part).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => all.extend_from_slice(&part[..count]),
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the connection ends");
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// A request as bytes.
pub fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
