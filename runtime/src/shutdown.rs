//! The signal that ends a process: SIGINT or SIGTERM. What is drained then is each binary's own matter.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal as listen};

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: what a kubelet sends.
    Terminate,
}

/// Completes at the first SIGINT or SIGTERM. The handlers are in place when the function returns, so no signal is missed before the first poll.
/// Call it inside a tokio runtime. Where the kernel refuses a handler that signal never comes.
pub fn signal() -> impl Future<Output = Signal> + Send + 'static {
    let interrupt = listen(SignalKind::interrupt());
    let terminate = listen(SignalKind::terminate());
    async move {
        tokio::select! {
            () = once(interrupt) => Signal::Interrupt,
            () = once(terminate) => Signal::Terminate,
        }
    }
}

async fn once(stream: std::io::Result<tokio::signal::unix::Signal>) {
    match stream {
        Ok(mut stream) => {
            stream.recv().await;
        }
        Err(error) => {
            tracing::error!(%error, "no handler for a signal");
            std::future::pending::<()>().await;
        }
    }
}
