//! Text that is the same in every run: made-up words, the frequent ones frequent, as in a language.

/// Words to choose from.
const VOCABULARY: u64 = 20_000;
const SYLLABLES: [&str; 32] = [
    "re", "in", "the", "con", "ta", "ti", "on", "de", "ro", "li", "ma", "ne", "po", "sta", "er", "al", "ex", "pert", "mo", "del",
    "ser", "ver", "a", "u", "si", "ka", "nt", "ing", "ou", "ch", "le", "y",
];

/// About so many bytes of it.
pub fn words(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 64);
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    while text.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The logarithm of the rank is even: Zipf's law.
        let share = (state >> 33) as f64 / (1u64 << 31) as f64;
        word((VOCABULARY as f64).powf(share) as u64, &mut text);
        text.push_str(if (state >> 20).is_multiple_of(12) { ". " } else { " " });
    }
    text
}

/// The word of a rank: the frequent ones are short.
fn word(rank: u64, text: &mut String) {
    let mut hash = rank.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (rank << 7);
    for _ in 0..1 + rank.checked_ilog(10).unwrap_or(0) {
        text.push_str(SYLLABLES[(hash >> 59) as usize % SYLLABLES.len()]);
        hash = hash.wrapping_mul(0xD134_2543_DE82_EF95).rotate_left(17);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_long_enough_and_the_same() {
        let text = words(100_000);
        assert!((100_000..100_064).contains(&text.len()));
        assert_eq!(text, words(100_000));
        let mut all: Vec<&str> = text.split(' ').collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > 1000 && all.len() < count / 2, "{} of {count}", all.len());
    }
}
