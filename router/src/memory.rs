//! What a burst of requests took goes back to the system after it. Large blocks do at once ([`m1_runtime::process::give_back_large_memory`]); small ones lie
//! among others, and glibc keeps their pages until it is asked.

use std::time::Duration;

use m1_runtime::process;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(5);
/// So much more memory than was left the last time is worth asking for.
const WORTH: u64 = 24 << 20;

/// Gives memory back for as long as the router runs.
pub async fn give_back() {
    let mut left = process::resident();
    let mut before = left;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = process::resident();
        // While it grows it is needed, and every thread that allocates would wait.
        if now > left.saturating_add(WORTH) && now <= before {
            // Takes a moment, in which others go on.
            left = tokio::task::spawn_blocking(|| {
                process::give_back_small_memory();
                process::resident()
            })
            .await
            .unwrap_or(now);
            tracing::debug!(before = now, left, "memory given back");
        }
        left = left.min(now);
        before = now;
    }
}
