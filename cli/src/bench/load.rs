//! How requests arrive: closed loop (the next one starts when one ends) or at random times of a given rate, never more in
//! flight than the concurrency.
//!
//! At a rate, the times of arrival are drawn beforehand, so to speak: nothing that the server does moves them. A request that cannot be sent at its time,
//! because all in flight are busy, is sent late and measured from the time it should have been sent. Else a server that stands still would be asked less
//! while it does, and its worst seconds would count once (coordinated omission).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::prompts::Random;

/// When no further request starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stop {
    /// After this many.
    Requests(u32),
    /// After this long; those in flight are waited for.
    After(Duration),
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Requests in flight at most.
    pub concurrency: u32,
    /// Arrivals per second.
    pub rate: Option<f64>,
    /// Its end.
    pub stop: Stop,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stop {
            Stop::Requests(count) => write!(f, "{count} requests")?,
            Stop::After(time) => write!(f, "{}", humantime::format_duration(time))?,
        }
        write!(f, ", at most {} in flight", self.concurrency)?;
        match self.rate {
            Some(rate) => write!(f, ", {rate} arrive per second"),
            None => Ok(()),
        }
    }
}

/// Does `work` as often as the load says, each time told when it should begin; it may begin later. Gives every outcome, and the time from the first
/// arrival to the last end.
pub async fn run<T, F>(load: &Load, random: &mut Random, mut work: impl FnMut(&mut Random, Instant) -> F) -> (Vec<T>, Duration)
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(load.concurrency as usize));
    let mut running = JoinSet::new();
    let mut done = Vec::new();
    let start = Instant::now();
    let mut arrival = start;
    for count in 0.. {
        // At a rate it is the arrival that the end is for: one that is due before is sent, however late.
        let (slot, due) = match load.rate {
            Some(rate) => {
                let due = arrival;
                if over(load.stop, count, due - start) {
                    break;
                }
                arrival += gap(rate, random.share());
                sleep_until(due).await;
                (slots.clone().acquire_owned().await, due)
            }
            None => {
                let slot = slots.clone().acquire_owned().await;
                if over(load.stop, count, start.elapsed()) {
                    break;
                }
                (slot, Instant::now())
            }
        };
        // A closed semaphore is not possible: nobody closes it.
        let Ok(slot) = slot else { break };
        let work = work(random, due);
        running.spawn(async move {
            let result = work.await;
            drop(slot);
            result
        });
        while let Some(Ok(result)) = running.try_join_next() {
            done.push(result);
        }
    }
    while let Some(result) = running.join_next().await {
        done.extend(result.ok());
    }
    (done, start.elapsed())
}

fn over(stop: Stop, started: u32, elapsed: Duration) -> bool {
    match stop {
        Stop::Requests(count) => started >= count,
        Stop::After(time) => elapsed >= time,
    }
}

/// Time to the next arrival of a Poisson process.
fn gap(rate: f64, share: f64) -> Duration {
    Duration::from_secs_f64(-share.ln() / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_wanted_mean() {
        let mut random = Random::new(1);
        let mean = (0..20_000).map(|_| gap(4.0, random.share()).as_secs_f64()).sum::<f64>() / 20_000.0;
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
    }

    /// A server that answers one request after the other in a millisecond, and stands still for 400 ms once: how many were measured, and the median and the
    /// longest time, by the load's count and by a clock that starts when a request is sent.
    async fn stalled(concurrency: u32, rate: Option<f64>, stop: Stop) -> (usize, [f64; 2], [f64; 2]) {
        let server = Arc::new(tokio::sync::Mutex::new(0u32));
        let load = Load { concurrency, rate, stop };
        let work = |_: &mut Random, due: Instant| {
            let server = server.clone();
            async move {
                let sent = Instant::now();
                let mut count = server.lock().await;
                *count += 1;
                tokio::time::sleep(Duration::from_millis(if *count == 20 { 400 } else { 1 })).await;
                (due.elapsed().as_secs_f64(), sent.elapsed().as_secs_f64())
            }
        };
        let (times, _) = run(&load, &mut Random::new(3), work).await;
        let spread = |of: fn(&(f64, f64)) -> f64| {
            let mut sorted: Vec<f64> = times.iter().map(of).collect();
            sorted.sort_by(f64::total_cmp);
            [sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
        };
        (times.len(), spread(|time| time.0), spread(|time| time.1))
    }

    #[tokio::test]
    async fn a_server_that_stands_still_is_not_asked_less() {
        // Some 80 requests are due while it does. Half of all wait a good while, and the clock of those who were sent says nothing of it.
        let (count, due, sent) = stalled(2, Some(200.0), Stop::Requests(100)).await;
        assert_eq!(count, 100);
        assert!(due[0] > 0.1 && due[1] >= 0.4, "{due:?}");
        assert!(sent[0] < due[0] / 3.0, "{sent:?} {due:?}");
        let (count, due, _) = stalled(2, Some(200.0), Stop::After(Duration::from_millis(500))).await;
        assert!((70..130).contains(&count), "{count} were due in half a second: all of them are sent, however late");
        assert!(due[0] > 0.1, "{due:?}");
    }

    #[tokio::test]
    async fn without_a_rate_the_next_one_is_due_when_one_ends() {
        let (count, due, _) = stalled(1, None, Stop::Requests(40)).await;
        assert_eq!(count, 40);
        assert!(due[0] < 0.1 && due[1] >= 0.4, "{due:?}");
    }

    #[test]
    fn a_measurement_ends_by_number_or_time() {
        assert!(!over(Stop::Requests(2), 1, Duration::ZERO) && over(Stop::Requests(2), 2, Duration::ZERO));
        let time = Duration::from_secs(1);
        assert!(!over(Stop::After(time), 99, Duration::ZERO) && over(Stop::After(time), 0, time));
    }

    #[test]
    fn a_load_says_what_it_is() {
        let load = Load { concurrency: 8, rate: Some(2.5), stop: Stop::After(Duration::from_secs(60)) };
        assert_eq!(load.to_string(), "1m, at most 8 in flight, 2.5 arrive per second");
    }
}
