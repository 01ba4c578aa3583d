//! Properties: how text is cut never changes what comes out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::LazyLock;

use m1_text::{Calls, ChatTemplate, Delta, OutputParser, StopStrings, TextStream, Tokenizer};
use proptest::prelude::*;

static DEMO: LazyLock<(Tokenizer, ChatTemplate)> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/m1-demo");
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let template = ChatTemplate::open(&dir, &tokenizer).unwrap();
    (tokenizer, template)
});

/// Answers made of tags, pieces of tags, calls and noise.
fn answer() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_calls>",
        "</tool_calls>",
        "<",
        "</",
        "think>",
        "\n",
        " ",
        "\r\n",
        "a",
        "\u{20ac}",
        "{",
        "}",
        "\"",
        "\\",
        ",",
        "{\"name\": \"f\", \"arguments\": {\"a\": \"}\"}}",
        "{\"name\": \"g\"}",
        "{\"name\": \"f\", \"arguments\": {\"a\": 1}",
        "word",
    ]);
    prop::collection::vec(pieces, 0..14).prop_map(|pieces| pieces.concat())
}

fn parse<'a>(chunks: impl Iterator<Item = &'a str>) -> Vec<Delta> {
    let mut parser = OutputParser::new(Calls::Parse);
    let mut deltas: Vec<Delta> = chunks.flat_map(|chunk| parser.push(chunk)).collect();
    deltas.extend(parser.finish());
    let mut joined: Vec<Delta> = Vec::new();
    for delta in deltas {
        match (joined.last_mut(), &delta) {
            (Some(Delta::Content(last)), Delta::Content(text)) | (Some(Delta::Reasoning(last)), Delta::Reasoning(text)) => {
                last.push_str(text)
            }
            _ => joined.push(delta),
        }
    }
    joined
}

/// Cuts `text` before the characters whose numbers `cuts` names.
fn cut<'a>(text: &'a str, cuts: &[prop::sample::Index]) -> Vec<&'a str> {
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let mut at: Vec<usize> = cuts.iter().map(|cut| *cut.get(&starts)).chain([0, text.len()]).collect();
    at.sort_unstable();
    at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn parsing_does_not_depend_on_the_cuts(text in answer(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..9)) {
        let whole = parse([text.as_str()].into_iter());
        prop_assert_eq!(parse(cut(&text, &cuts).into_iter()), whole.clone());
        let letters: Vec<String> = text.chars().map(String::from).collect();
        prop_assert_eq!(parse(letters.iter().map(String::as_str)), whole);
    }

    #[test]
    fn streaming_gives_the_decoded_text(ids in prop::collection::vec(0u32..2120, 0..40)) {
        let mut stream = TextStream::new(&DEMO.0, StopStrings::default());
        let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        prop_assert_eq!(streamed + &stream.finish(), DEMO.0.decode(&ids));
    }

    #[test]
    fn streaming_ends_at_the_first_stop_string(
        text in "[ab\u{20ac} ]{0,24}",
        stops in prop::collection::vec("[ab\u{20ac}]{1,4}", 0..4),
    ) {
        let mut stream = TextStream::new(&DEMO.0, StopStrings::new(stops.clone()).unwrap());
        let ids = DEMO.0.encode(&text).unwrap();
        let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        let streamed = streamed + &stream.finish();
        // The shortest beginning of the text that holds a stop string, by trying them all.
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        let first = ends.filter_map(|end| stops.iter().filter_map(|stop| text[..end].strip_suffix(stop.as_str())).min_by_key(|kept| kept.len())).next();
        prop_assert_eq!(stream.stopped().is_some(), first.is_some());
        prop_assert_eq!(streamed.as_str(), first.unwrap_or(&text));
    }

    #[test]
    fn text_survives_encoding(text in "\\PC{0,40}") {
        let ids = DEMO.0.encode(&text).unwrap();
        prop_assert_eq!(DEMO.0.decode_with_control(&ids), text);
    }

    #[test]
    fn a_users_text_holds_no_control_token(parts in prop::collection::vec(
        prop::sample::select(vec!["<end_of_sentence>", "<end_of", "_sentence>", "<", "<pad>", "\u{fdd0}", "x", ">", " "]), 0..12)) {
        let (tokenizer, template) = &*DEMO;
        let content: Vec<_> = parts.iter().map(|text| serde_json::json!({"type": "text", "text": text})).collect();
        let prompt = template.render(&serde_json::json!([{"role": "user", "content": content}]), None).unwrap();
        let ids = tokenizer.encode_prompt(&prompt).unwrap();
        // begin_of_document, and the start and end of the user's turn, and the start of the answer.
        prop_assert_eq!(ids.iter().filter(|&&id| tokenizer.is_control(id)).count(), 4);
        prop_assert_eq!(tokenizer.decode_with_control(&ids), prompt.text());
        prop_assert!(prompt.text().contains(&parts.concat()));
    }
}
