//! Frames on their way into a connection. Where the device hands one over between two looks, the task that sends it is woken with the next look: to wake it at
//! once costs three system calls, and the device is the one who runs it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use m1_proto::dispatch::Frame;
use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::device_io::Shared;

/// What is handed to a [`Link`](super::Link), in its order.
#[derive(Debug)]
pub(super) struct Outgoing {
    frames: mpsc::Receiver<Frame>,
    /// Who drives the connection, where a device does.
    device: Option<Arc<Shared>>,
    /// Who is woken by it.
    woken: Option<(Arc<WithLook>, Waker)>,
}

/// Wakes a task of the device's, with the next look where the device itself wakes it.
#[derive(Debug)]
struct WithLook {
    task: Waker,
    device: Arc<Shared>,
}

impl Wake for WithLook {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match self.device.between_looks() {
            true => self.device.hold(&self.task, false),
            false => self.task.wake_by_ref(),
        }
    }
}

impl Outgoing {
    pub fn new(frames: mpsc::Receiver<Frame>, device: Option<Arc<Shared>>) -> Self {
        Self { frames, device, woken: None }
    }
}

impl Stream for Outgoing {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        let Self { frames, device, woken } = self.get_mut();
        let Some(device) = device else { return frames.poll_recv(context) };
        let (_, waker) = match woken.take().filter(|(with_look, _)| with_look.task.will_wake(context.waker())) {
            Some(same) => woken.insert(same),
            None => {
                let with_look = Arc::new(WithLook { task: context.waker().clone(), device: device.clone() });
                let waker = Waker::from(with_look.clone());
                woken.insert((with_look, waker))
            }
        };
        frames.poll_recv(&mut Context::from_waker(waker))
    }
}
