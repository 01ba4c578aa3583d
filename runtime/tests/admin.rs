//! The admin server over a real socket: what a kubelet and Prometheus get.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use m1_runtime::admin::{Admin, AdminError, Checks, Unwell};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A component that is well or not.
#[derive(Default)]
struct Component {
    well: AtomicBool,
}

impl Component {
    fn check(&self, reason: &str) -> Result<(), Unwell> {
        if self.well.load(Ordering::Relaxed) { Ok(()) } else { Err(Unwell::new(reason, "a \"sentence\"")) }
    }
}

impl Checks for Component {
    fn started(&self) -> Result<(), Unwell> {
        self.check("Loading")
    }

    fn ready(&self) -> Result<(), Unwell> {
        self.check("NotReady")
    }

    fn live(&self) -> Result<(), Unwell> {
        self.check("Stalled")
    }

    fn metrics(&self) -> Result<String, Unwell> {
        self.check("NotWritten").map(|()| "# TYPE m1_up gauge\nm1_up 1\n".to_owned())
    }
}

struct Stand {
    component: Arc<Component>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Stand {
    async fn new(well: bool) -> Self {
        let component = Arc::new(Component { well: AtomicBool::new(well) });
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = admin.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let checks = component.clone();
        let served = tokio::spawn(admin.serve(checks, async {
            let _ = stopped.await;
        }));
        Self { component, address, stop, served }
    }

    async fn ask(&self, method: &str, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }
}

#[tokio::test]
async fn what_is_well_is_ok() {
    let stand = Stand::new(true).await;
    for path in ["/livez", "/readyz", "/startupz", "/readyz?verbose=1"] {
        let (status, _, body) = stand.ask("GET", path).await;
        assert_eq!((status, body.as_str()), (200, "ok"), "{path}");
    }
    let (status, head, body) = stand.ask("GET", "/metrics").await;
    assert_eq!((status, body.as_str()), (200, "# TYPE m1_up gauge\nm1_up 1\n"));
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
}

#[tokio::test]
async fn what_is_not_is_said_with_its_reason() {
    let stand = Stand::new(false).await;
    for (path, reason) in [("/livez", "Stalled"), ("/readyz", "NotReady"), ("/startupz", "Loading")] {
        let (status, head, body) = stand.ask("GET", path).await;
        assert_eq!(status, 503, "{path}");
        assert!(head.contains("content-type: application/json"), "{head}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body, serde_json::json!({"reason": reason, "message": "a \"sentence\""}));
    }
    assert_eq!(stand.ask("GET", "/metrics").await.0, 500);
    stand.component.well.store(true, Ordering::Relaxed);
    assert_eq!(stand.ask("GET", "/readyz").await.0, 200, "every probe asks anew");
}

#[tokio::test]
async fn head_has_no_body_and_what_is_unknown_is_not_found() {
    let stand = Stand::new(false).await;
    let (status, head, body) = stand.ask("HEAD", "/livez").await;
    assert_eq!((status, body.as_str()), (503, ""));
    assert!(head.contains("content-length"), "{head}");
    assert_eq!(stand.ask("GET", "/").await.0, 404);
    assert_eq!(stand.ask("GET", "/livez/ping").await.0, 404);
    assert_eq!(stand.ask("POST", "/livez").await.0, 405);
}

#[tokio::test]
async fn it_ends_when_told_and_a_taken_address_is_an_error() {
    let stand = Stand::new(true).await;
    let error = Admin::bind(stand.address).await.unwrap_err();
    assert!(matches!(&error, AdminError::Bind { address, .. } if *address == stand.address));
    assert_eq!(error.reason(), "AdminNotBound");
    assert_eq!(error.to_string(), format!("cannot bind {} for the admin server", stand.address));
    // A connection that says nothing does not hold the server.
    let _idle = TcpStream::connect(stand.address).await.unwrap();
    stand.stop.send(()).unwrap();
    stand.served.await.unwrap();
    assert!(TcpStream::connect(stand.address).await.is_err());
}

#[tokio::test]
async fn clients_that_say_nothing_keep_no_probe_out() {
    let stand = Stand::new(true).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(stand.address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: ").await.unwrap();
        silent.push(stream);
    }
    assert_eq!(stand.ask("GET", "/livez").await.0, 200);
    // The oldest are gone; those of late are still there.
    let mut byte = [0u8; 1];
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), silent[0].read(&mut byte)).await.expect("it is ended");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let newest = silent.last_mut().unwrap();
    newest.write_all(b"pod\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    newest.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}
