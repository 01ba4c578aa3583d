//! The signals that end a process: SIGINT and SIGTERM. What is drained then is each binary's own matter.

use std::future::Future;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal as listen};
use tokio::sync::mpsc;

/// Signals that wait to be looked at: the one that ends the process and the one that hurries it; more say nothing new.
const PENDING: usize = 2;

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: what a kubelet sends.
    Terminate,
}

/// Every SIGINT and SIGTERM from now on. The handlers are in place when the function returns: a process that runs as number 1
/// of a container is not ended by a signal that it does not handle, so this comes before anything slow. Call it inside a
/// tokio runtime. Where the kernel refuses a handler that signal never comes.
pub fn signals() -> mpsc::Receiver<Signal> {
    let (sender, receiver) = mpsc::channel(PENDING);
    let handlers = [(SignalKind::interrupt(), Signal::Interrupt), (SignalKind::terminate(), Signal::Terminate)];
    for (kind, signal) in handlers {
        match listen(kind) {
            Ok(stream) => drop(tokio::spawn(forward(stream, signal, sender.clone()))),
            Err(error) => tracing::error!(%error, ?signal, "no handler for a signal"),
        }
    }
    receiver
}

async fn forward(mut stream: Stream, signal: Signal, sender: mpsc::Sender<Signal>) {
    loop {
        tokio::select! {
            () = sender.closed() => return,
            Some(()) = stream.recv() => {
                // Where the channel is full the process is being hurried already.
                let _ = sender.try_send(signal);
            }
            else => return,
        }
    }
}

/// Completes at the first SIGINT or SIGTERM. See [`signals`].
pub fn signal() -> impl Future<Output = Signal> + Send + 'static {
    let mut signals = signals();
    async move {
        match signals.recv().await {
            Some(signal) => signal,
            // No handler could be set.
            None => std::future::pending().await,
        }
    }
}
