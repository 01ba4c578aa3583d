//! Whole groups of exchanges over a simulated network, seed by seed. `M1_SIM_SEED=17 cargo test -p m1-exchange --test
//! simulation NAME -- --nocapture` replays one seed and prints what happens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

mod sim;

use sim::{Profile, Seen, run_seeds};

#[test]
fn a_storm_loses_and_doubles_nothing() {
    let Some(seen) = run_seeds(3000, Profile::Storm) else { return };
    println!("{seen:?}");
    let Seen { complete, failed, spared, parked, resumed, discarded, partial, not_here, refused, dropped, forgotten, .. } = seen;
    for count in
        [complete, failed, spared, parked, resumed, discarded, partial, not_here, refused, dropped, forgotten, seen.aborted]
    {
        assert!(count > 100, "the storm is too weak to show anything: {seen:?}");
    }
}

#[test]
fn copies_stand_in_for_pods_that_stand_still() {
    let Some(seen) = run_seeds(1000, Profile::Stalls) else { return };
    println!("{seen:?}");
    assert!(seen.partial > 300 && seen.discarded > 1000, "too few overlaps: {seen:?}");
}

#[test]
fn a_calm_group_completes_every_step_at_once() {
    let Some(seen) = run_seeds(300, Profile::Calm) else { return };
    println!("{seen:?}");
    assert!(seen.complete > 10_000);
    assert_eq!((seen.parked, seen.discarded, seen.dropped, seen.failed), (0, 0, 0, 0));
    assert_eq!(seen.late, 0, "something waited for a tick that an event could have begun");
}

#[test]
fn who_says_that_it_will_be_long_is_never_dead() {
    let Some(seen) = run_seeds(1000, Profile::Announced) else { return };
    println!("{seen:?}");
    assert!(seen.busy > 10_000, "too few long turns: {seen:?}");
    // Steps park before the first connections stand, at most.
    assert_eq!((seen.dead, seen.parked - seen.resumed, seen.dropped, seen.failed), (0, 0, 0, 0));
}
