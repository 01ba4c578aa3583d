//! A clock that is moved at every event and hardly ever rings.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// One that was never set has no clock yet.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready once it is `due`, which may be another time at every call. To ring too early costs a look; to move the clock at every event would cost more.
    pub fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let clock = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if due < clock.deadline() || clock.is_elapsed() {
            clock.as_mut().reset(due);
        }
        while clock.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            clock.as_mut().reset(due);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_rings_when_it_is_due_however_often_that_was_moved() {
        let started = Instant::now();
        let mut alarm = Alarm::default();
        let at = |tenths: u64| started + Duration::from_millis(100 * tenths);
        for due in [at(900), at(999), at(3)] {
            let pending = std::future::poll_fn(|cx| Poll::Ready(alarm.poll(due, cx).is_pending())).await;
            assert!(pending);
        }
        for due in [at(3), at(4), at(1)] {
            std::future::poll_fn(|cx| alarm.poll(due, cx)).await;
            assert!((due..started + Duration::from_secs(60)).contains(&Instant::now()));
        }
    }
}
