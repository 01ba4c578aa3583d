//! Where a text is cut into words, which merges never cross: at the matches of a pattern, as the `tokenizers` crate cuts it.
//!
//! The patterns in use end in `|\s+(?!\S)|\s+`: white space, but not its last character where a word follows, which takes that one along. Looking ahead
//! costs a backtracking engine. The same cuts come from two plain patterns tried in order, everything before that ending and `\s+`: a match of the second
//! is white space up to a word or the end, and in front of a word it gives its last character back, unless that is all it has.

use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};
use serde_json::Value;

/// The ending, as it is written.
const ENDING: &str = r"|\s+(?!\S)|\s+";
/// What `ByteLevel` cuts at: GPT-2's pattern, without the ending.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+";

/// Cuts texts.
#[derive(Debug)]
pub(super) enum Splitter {
    /// Nowhere.
    Never,
    /// At the matches of two patterns, the second of which is white space.
    At(Regex),
}

impl Splitter {
    /// The splitter of a `pre_tokenizer`; none for one that is not known to be the same.
    pub(super) fn read(given: &Value) -> Option<Self> {
        match given["type"].as_str()? {
            "ByteLevel" => match byte_level(given)? {
                true => Self::new(GPT2),
                false => Some(Self::Never),
            },
            "Sequence" => match given["pretokenizers"].as_array()?.as_slice() {
                [split, bytes] if !byte_level(bytes)? => Self::new(pattern(split)?.strip_suffix(ENDING)?),
                _ => None,
            },
            _ => None,
        }
    }

    fn new(pattern: &str) -> Option<Self> {
        // Plain patterns mean the same to both engines.
        let odd = ["(?!", "(?=", "(?<", "(?>", "(?#", "++", "*+", "?+", "\\b", "\\B", "\\K", "\\G", "$"];
        let counted = |(at, _): (usize, &str)| pattern[..at].ends_with(|c: char| c.is_ascii_digit() || c == ',');
        let possessive = pattern.match_indices("}+").any(counted);
        let anchored = pattern.matches('^').count() > pattern.matches("[^").count();
        if odd.iter().any(|odd| pattern.contains(odd)) || possessive || anchored {
            return None;
        }
        Regex::new_many(&[pattern, r"\s+"]).ok().map(Self::At)
    }

    /// The end of the word that begins at `at`; none at the end.
    pub(super) fn next(&self, text: &str, at: usize) -> Option<usize> {
        if at >= text.len() {
            return None;
        }
        let Self::At(regex) = self else { return Some(text.len()) };
        let input = Input::new(text).range(at..);
        let Some(found) = regex.search(&input.clone().anchored(Anchored::Yes)) else {
            // What no pattern takes is a word of its own, up to the next match.
            return Some(regex.search(&input).map_or(text.len(), |next| next.start()));
        };
        let end = found.end();
        if found.pattern().as_usize() == 0 || end == text.len() {
            return Some(end);
        }
        let last = text.get(at..end).and_then(|space| space.chars().next_back()).map_or(0, char::len_utf8);
        Some(if end - last > at { end - last } else { end })
    }
}

/// Whether a `ByteLevel` cuts by itself; none for one that also changes the text, or is another.
fn byte_level(given: &Value) -> Option<bool> {
    if given["type"] != "ByteLevel" || given["add_prefix_space"] != false {
        return None;
    }
    // Absent means true.
    Some(given["use_regex"] != false)
}

/// The pattern of a `Split` that cuts at its matches and leaves nothing out.
fn pattern(given: &Value) -> Option<&str> {
    let cuts = given["type"] == "Split" && given["behavior"] == "Isolated" && given["invert"] == false;
    given["pattern"]["Regex"].as_str().filter(|_| cuts)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

    /// GPT-4o's, which M1's merges fit.
    const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn ours(splitter: &Splitter, text: &str) -> Vec<(usize, usize)> {
        let mut words = Vec::new();
        let mut at = 0;
        while let Some(end) = splitter.next(text, at) {
            words.push((at, end));
            at = end;
        }
        words
    }

    fn library(pattern: &str) -> Split {
        Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false).unwrap()
    }

    /// Both splitters of both patterns in use; to compile them takes longer than to run them.
    static PAIRS: LazyLock<[(Splitter, Split); 2]> =
        LazyLock::new(|| [O200K, &format!("{GPT2}{ENDING}")].map(|pattern| (of_regex(pattern).unwrap(), library(pattern))));

    fn theirs(split: &Split, text: &str) -> Vec<(usize, usize)> {
        let mut words = PreTokenizedString::from(text);
        split.pre_tokenize(&mut words).unwrap();
        words.get_splits(OffsetReferential::Original, OffsetType::Byte).into_iter().map(|(_, at, _)| at).collect()
    }

    fn of_regex(pattern: &str) -> Option<Splitter> {
        Splitter::read(&json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]}))
    }

    #[test]
    fn only_known_forms_are_taken() {
        assert!(of_regex(O200K).is_some());
        for odd in [
            r"\w+",
            r"a++|\s+(?!\S)|\s+",
            r"^a|\s+(?!\S)|\s+",
            r"(?=a)b|\s+(?!\S)|\s+",
            r"\p{L}?+a|\s+(?!\S)|\s+",
            r"a{2}+|\s+(?!\S)|\s+",
        ] {
            assert!(of_regex(odd).is_none(), "{odd}");
        }
        let bytes =
            |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
        assert!(Splitter::read(&bytes(false)).is_some() && Splitter::read(&bytes(true)).is_none());
        assert!(Splitter::read(&json!({"type": "Whitespace"})).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn words_are_the_crates(parts in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![" ", "  ", "\n", "\r\n", "\t", "\u{a0}", "\u{2003}", "'s", "'S", "'re", "'", "a", "Ab", "ABC", "\u{17f}", "12", "1234", "\u{b2}",
                "\u{4e2d}\u{6587}", "\u{e9}", "e\u{301}", "!", "//", "/\n", "\u{1f600}", "\u{ac}", "_", "\u{fdd0}", "\u{0}"]).prop_map(str::to_owned),
            "\\PC{0,3}",
        ], 0..14)) {
            let text = parts.concat();
            for (splitter, library) in PAIRS.iter() {
                let expected: Vec<_> = theirs(library, &text).into_iter().filter(|(start, end)| start < end).collect();
                prop_assert_eq!(ours(splitter, &text), expected, "{:?}", text);
            }
        }
    }
}
