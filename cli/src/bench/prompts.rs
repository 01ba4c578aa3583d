//! Prompts of a wanted length without a tokenizer: random common words. No two are alike, so a prefix cache does not help.

/// Words that most tokenizers know as one token.
const WORDS: [&str; 64] = [
    "the", "node", "of", "time", "and", "water", "run", "small", "house", "light", "number", "world", "make", "day", "work",
    "part", "place", "point", "group", "line", "right", "hand", "high", "state", "set", "end", "name", "open", "read", "pod",
    "list", "case", "form", "order", "change", "field", "value", "long", "first", "new", "side", "home", "close", "road", "city",
    "tree", "story", "north", "plan", "table", "stand", "river", "paper", "music", "sea", "rain", "stone", "bird", "fire", "green",
    "week", "market", "heart", "voice",
];

/// Numbers that are the same for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, never 0: its logarithm is wanted.
    pub fn share(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }
}

/// Prompts of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompts {
    words: usize,
}

impl Prompts {
    /// Of this many words.
    pub fn of_words(words: usize) -> Self {
        Self { words: words.max(1) }
    }

    /// Of about this many tokens, where a word makes `tokens_per_word`.
    pub fn of_tokens(tokens: u32, tokens_per_word: f64) -> Self {
        let per_word = if tokens_per_word.is_finite() && tokens_per_word > 0.0 { tokens_per_word } else { 1.0 };
        Self::of_words((f64::from(tokens) / per_word).round() as usize)
    }

    /// The next prompt.
    pub fn next(&self, random: &mut Random) -> String {
        let words: Vec<&str> = (0..self.words).map(|_| WORDS[(random.bits() % WORDS.len() as u64) as usize]).collect();
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_prompts_again() {
        let prompts = Prompts::of_words(5);
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        let first = prompts.next(&mut a);
        assert_eq!(first, prompts.next(&mut b));
        assert_ne!(first, prompts.next(&mut a));
        assert_eq!(first.split(' ').count(), 5);
    }

    #[test]
    fn words_follow_from_the_servers_count() {
        assert_eq!(Prompts::of_tokens(256, 2.0), Prompts::of_words(128));
        assert_eq!(Prompts::of_tokens(1, 5.0), Prompts::of_words(1));
        assert_eq!(Prompts::of_tokens(9, 0.0), Prompts::of_words(9));
    }

    #[test]
    fn shares_lie_above_0_and_up_to_1() {
        let mut random = Random::new(3);
        assert!((0..1000).map(|_| random.share()).all(|share| share > 0.0 && share <= 1.0));
    }
}
