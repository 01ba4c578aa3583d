//! How requests arrive: closed loop (the next one starts when one ends) or at random times of a given rate, never more in
//! flight than the concurrency.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::prompts::{Prompts, Random};
use super::stream::{RequestError, Sample, Target, request};

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

/// Puts the load on `target`. Gives every outcome, and the time from the first request to the last end.
pub async fn run(
    target: &Target,
    load: &Load,
    prompts: &Prompts,
    random: &mut Random,
) -> (Vec<Result<Sample, RequestError>>, Duration) {
    let slots = Arc::new(Semaphore::new(load.concurrency as usize));
    let mut running = JoinSet::new();
    let mut samples = Vec::new();
    let start = Instant::now();
    let mut arrival = start;
    for count in 0.. {
        if let Some(rate) = load.rate {
            sleep_until(arrival).await;
            arrival += gap(rate, random.share());
        }
        // A closed semaphore is not possible: nobody closes it.
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        if over(load.stop, count, start.elapsed()) {
            break;
        }
        let (target, prompt) = (target.clone(), prompts.next(random));
        running.spawn(async move {
            let result = request(&target, prompt).await;
            drop(slot);
            result
        });
        while let Some(Ok(sample)) = running.try_join_next() {
            samples.push(sample);
        }
    }
    while let Some(result) = running.join_next().await {
        samples.extend(result.ok());
    }
    (samples, start.elapsed())
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
