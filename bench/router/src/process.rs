//! What a process and all that it started have cost: `/proc`, Linux only.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};

/// The process and its descendants.
fn family(root: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").context("read /proc")? {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())) else {
            continue;
        };
        if let Some(parent) = fields(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        family.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    Ok(family)
}

/// Fields of `/proc/PID/stat` after the name, which may hold anything: state, parent, ..
fn fields(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// CPU time so far, in user and in kernel.
///
/// # Errors
/// It is gone.
pub fn cpu(root: u32) -> Result<Duration> {
    let ticks = |pid: u32| -> Option<u64> {
        let fields = fields(pid)?;
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    ticks(root).with_context(|| format!("process {root} is gone"))?;
    let total: u64 = family(root)?.into_iter().filter_map(ticks).sum();
    Ok(Duration::from_secs_f64(total as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Resident bytes now, and the most since [`forget_peak`].
///
/// # Errors
/// It is gone.
pub fn resident(root: u32) -> Result<(u64, u64)> {
    let of = |pid: u32| -> Option<(u64, u64)> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kb| kb * 1024)
        };
        Some((field("VmRSS:")?, field("VmHWM:")?))
    };
    of(root).with_context(|| format!("process {root} is gone"))?;
    Ok(family(root)?.into_iter().filter_map(of).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)))
}

/// Begins the peak anew.
///
/// # Errors
/// It is gone, or not ours.
pub fn forget_peak(root: u32) -> Result<()> {
    for pid in family(root)? {
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").with_context(|| format!("reset the peak of process {pid}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something() {
        let before = cpu(std::process::id()).unwrap();
        let mut sum = 0u64;
        while cpu(std::process::id()).unwrap() < before + Duration::from_millis(30) {
            sum = std::hint::black_box(sum + 1);
        }
        let (now, peak) = resident(std::process::id()).unwrap();
        assert!(now > 1 << 20 && peak >= now / 2);
        assert!(cpu(u32::MAX - 1).is_err());
    }
}
