//! Encoding: the ids are the `tokenizers` crate's, whatever the text, and no work is done for a text that cannot fit or that nobody waits for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use m1_text::{Bounds, EncodeError, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/m1-demo")
}

/// Ours and the crate's, of the same file.
struct Pair {
    ours: Tokenizer,
    library: tokenizers::Tokenizer,
}

impl Pair {
    fn open(change: impl FnOnce(&mut Value)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(demo().join("tokenizer.json")).unwrap();
        let mut file: Value = serde_json::from_str(&text).unwrap();
        change(&mut file);
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        std::fs::copy(demo().join("tokenizer_config.json"), dir.path().join("tokenizer_config.json")).unwrap();
        let library = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        Self { ours: Tokenizer::open(dir.path()).unwrap(), library }
    }

    fn check(&self, text: &str) {
        let expected = self.library.encode_fast(text, false).unwrap();
        assert_eq!(self.ours.encode(text).unwrap(), expected.get_ids(), "{:?}", text.get(..200).unwrap_or(text));
    }
}

static DEMO: LazyLock<Pair> = LazyLock::new(|| Pair::open(|_| {}));
/// The same merges behind GPT-4o's pattern.
static O200K: LazyLock<Pair> = LazyLock::new(|| {
    let pattern = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    Pair::open(|file| {
        file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    })
});
/// One that is left to the crate.
static FOREIGN: LazyLock<Pair> = LazyLock::new(|| Pair::open(|file| file["normalizer"] = json!({"type": "NFC"})));

/// Words, pieces of words and noise.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "the",
        " of",
        "Kubernetes",
        "container",
        "'s",
        "'",
        "<pad>",
        "<",
        "end_of_sentence>",
        "12",
        "345678",
        "\u{4e2d}\u{6587}",
        "\u{e9}",
        "e\u{301}",
        "!?",
        "{\"",
        "\u{1f600}",
        "\u{a0}",
        "_",
        "aaaa",
        "inin",
    ]);
    prop::collection::vec(prop_oneof![8 => pieces.prop_map(str::to_owned), 1 => "\\PC{0,4}"], 0..24)
        .prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ids_are_the_crates(text in text()) {
        DEMO.check(&text);
        O200K.check(&text);
        FOREIGN.check(&text);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn long_words_are_encoded_in_windows_alike(
        pieces in prop::collection::vec("[aeinort]{1,6}", 1..6), repeats in 1500usize..3000, tail in "[a-z]{0,9}",
    ) {
        // More than two windows without a blank.
        let word = pieces.concat().repeat(repeats) + &tail;
        DEMO.check(&word);
    }
}

#[test]
fn words_without_an_end_are_encoded_alike() {
    for unit in ["a", "in", "0", "\u{4e2d}", "!", " ", "\n", "the", "\u{0}", "aab", "internationalization"] {
        DEMO.check(&unit.repeat(40_000 / unit.len()));
        O200K.check(&unit.repeat(40_000 / unit.len()));
    }
    let mixed: String = (0..40_000u32).map(|n| char::from(b'a' + (n * n / 7 % 26) as u8)).collect();
    DEMO.check(&mixed);
}

#[test]
fn ids_come_in_order_when_they_are_passed_on() {
    let text = "The Pod is a container; ".repeat(2000);
    let mut passed = Vec::new();
    DEMO.ours.encode_to(&text, &Bounds::NONE, &mut |ids| passed.extend_from_slice(ids)).unwrap();
    assert_eq!(passed, DEMO.ours.encode(&text).unwrap());
}

#[test]
fn a_text_that_cannot_fit_is_refused_before_its_end() {
    let never = AtomicBool::new(false);
    let bounds = |tokens| Bounds { tokens, cancelled: &never };
    let longest = DEMO.ours.longest();
    let text = " x".repeat(100_000);
    let error = DEMO.ours.encode_within(&text, &bounds(100)).unwrap_err();
    assert_eq!(error, EncodeError::Bytes { bytes: 200_000, tokens: 200_000usize.div_ceil(longest) });
    let most = 200_000 / longest + 1;
    for text in [text.as_str(), &"qz".repeat(100_000)] {
        assert_eq!(DEMO.ours.encode_within(text, &bounds(most)), Err(EncodeError::Tokens { tokens: most }));
    }
    let ids = DEMO.ours.encode("The Pod is a container").unwrap();
    assert_eq!(DEMO.ours.encode_within("The Pod is a container", &bounds(ids.len())).unwrap(), ids);
    assert!(DEMO.ours.encode_within("The Pod is a container", &bounds(ids.len() - 1)).is_err());
}

#[test]
fn an_encoding_ends_when_nobody_waits() {
    let gone = AtomicBool::new(true);
    let bounds = Bounds { tokens: usize::MAX, cancelled: &gone };
    assert_eq!(DEMO.ours.encode_within("a", &bounds), Err(EncodeError::Cancelled));
    // It is noticed in the middle, too, with and without blanks.
    for text in ["a b ".repeat(10_000), "ab".repeat(100_000)] {
        let leaving = AtomicBool::new(false);
        let bounds = Bounds { tokens: usize::MAX, cancelled: &leaving };
        let mut seen = 0;
        let ended = DEMO.ours.encode_to(&text, &bounds, &mut |ids| {
            seen += ids.len();
            leaving.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(ended, Err(EncodeError::Cancelled));
        assert!(seen < 10_000, "{seen}");
    }
}
