//! Properties of [`ExpertSet`] and the exact text form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use m1_arch::{ExpertId, ExpertSet, ExpertSetError, LayerId};
use proptest::prelude::*;

/// A shape and some pairs inside it.
fn sets() -> impl Strategy<Value = (usize, usize, Vec<(u16, u16)>)> {
    (1usize..12, 1usize..70).prop_flat_map(|(layers, experts)| {
        let pairs = proptest::collection::vec((0..layers as u16, 0..experts as u16), 0..60);
        (Just(layers), Just(experts), pairs)
    })
}

fn set_of(layers: usize, experts: usize, pairs: &[(u16, u16)]) -> ExpertSet {
    let mut set = ExpertSet::empty(layers, experts);
    for (layer, expert) in pairs {
        set.insert(LayerId(*layer), ExpertId(*expert));
    }
    set
}

proptest! {
    #[test]
    fn hex_round_trips((layers, experts, pairs) in sets()) {
        let set = set_of(layers, experts, &pairs);
        let text = set.to_hex();
        prop_assert_eq!(text.len(), layers * experts.div_ceil(4));
        prop_assert_eq!(&ExpertSet::from_hex(layers, experts, &text).unwrap(), &set);
        prop_assert_eq!(ExpertSet::from_hex(layers, experts, &text.to_uppercase()).unwrap(), set);
    }

    #[test]
    fn any_text_is_read_back_as_written_or_refused((layers, experts, _) in sets(), text in "[0-9a-fg]{0,200}") {
        if let Ok(set) = ExpertSet::from_hex(layers, experts, &text) {
            prop_assert_eq!(set.to_hex(), text);
        }
    }

    #[test]
    fn a_set_has_what_was_put_in((layers, experts, pairs) in sets()) {
        let set = set_of(layers, experts, &pairs);
        let mut wanted: Vec<_> = pairs.iter().map(|(l, e)| (LayerId(*l), ExpertId(*e))).collect();
        wanted.sort_unstable();
        wanted.dedup();
        prop_assert_eq!(set.len(), wanted.len());
        prop_assert_eq!(set.is_empty(), wanted.is_empty());
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn algebra((layers, experts, pairs) in sets(), cut in 0usize..60) {
        let all = set_of(layers, experts, &pairs);
        let one = set_of(layers, experts, &pairs[..cut.min(pairs.len())]);
        let other = all.difference(&one);
        prop_assert!(one.is_subset(&all) && other.is_subset(&all));
        prop_assert!(one.intersection(&other).is_empty());
        prop_assert_eq!(one.union(&other), all.clone());
        prop_assert_eq!(one.len() + other.len(), all.len());
        prop_assert_eq!(all.intersection(&one), one);
    }
}

#[test]
fn the_lowest_expert_is_the_highest_bit() {
    let mut set = ExpertSet::empty(2, 6);
    assert!(set.insert(LayerId(0), ExpertId(0)));
    assert!(set.insert(LayerId(1), ExpertId(5)));
    assert_eq!(set.to_hex(), "8004");
    assert!(!set.insert(LayerId(0), ExpertId(0)), "it is there already");
    assert!(set.remove(LayerId(0), ExpertId(0)));
    assert!(!set.remove(LayerId(0), ExpertId(0)));
    assert_eq!(set.to_hex(), "0004");
}

#[test]
fn a_pod_of_minimax_m1_takes_640_characters() {
    let set = ExpertSet::from_range(80, 32, 0..16);
    assert_eq!(set.to_hex(), "ffff0000".repeat(80));
    assert_eq!(set.len(), 1280);
    assert_eq!(set.union(&ExpertSet::from_range(80, 32, 16..32)), ExpertSet::full(80, 32));
    assert!(ExpertSet::full(80, 32).is_full() && !set.is_full());
    assert_eq!(set.experts_of(LayerId(79)).count(), 16);
    assert_eq!(set.experts_of(LayerId(80)).count(), 0);
    assert_eq!((set.layers(), set.experts()), (80, 32));
    assert!(ExpertSet::from_range(2, 8, 6..100) == ExpertSet::from_range(2, 8, 6..8));
}

#[test]
fn pairs_that_the_model_lacks_are_never_in() {
    let mut set = ExpertSet::full(2, 6);
    assert!(!set.contains(LayerId(2), ExpertId(0)) && !set.contains(LayerId(0), ExpertId(6)));
    assert!(!set.insert(LayerId(0), ExpertId(6)) && !set.insert(LayerId(2), ExpertId(0)));
    assert!(!set.remove(LayerId(0), ExpertId(6)));
    assert_eq!(set.len(), 12);
    assert!(!ExpertSet::full(3, 6).is_subset(&set));
}

#[test]
fn what_is_wrong_with_a_text_is_said() {
    let refused = |text: &str| ExpertSet::from_hex(2, 6, text).unwrap_err();
    assert_eq!(refused("80040"), ExpertSetError::Length { given: 5, allowed: 4, layers: 2, digits: 2 });
    assert_eq!(refused("80x4"), ExpertSetError::Digit { at: 2, given: 'x' });
    assert_eq!(refused("8é04"), ExpertSetError::Digit { at: 1, given: 'é' });
    assert_eq!(refused("8002"), ExpertSetError::Beyond { layer: 1, given: 6, last: 5 });
    assert_eq!(refused("8002").reason(), "BitmapBeyondExperts");
    assert!(refused("").to_string().contains("allowed are 4 (2 layers x 2 hex digits)"));
}

#[test]
fn it_prints_as_its_text() {
    assert_eq!(format!("{:?}", ExpertSet::from_range(2, 4, 0..1)), "ExpertSet(2 of 2 x 4: 88)");
}
