//! The parser's rules, each on a whole text and cut into single characters.

use super::*;

/// Parses `text` whole and by the character, and gives the joined deltas of both.
fn parse_as(text: &str, calls: Calls) -> Vec<Delta> {
    let whole = run([text], calls);
    let letters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(run(letters.iter().map(String::as_str), calls), whole, "cut into characters: {text:?}");
    whole
}

fn parse(text: &str) -> Vec<Delta> {
    parse_as(text, Calls::Parse)
}

fn run<'a>(chunks: impl IntoIterator<Item = &'a str>, calls: Calls) -> Vec<Delta> {
    let mut parser = OutputParser::new(calls);
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend(parser.push(chunk));
    }
    out.extend(parser.finish());
    join(out)
}

fn join(deltas: Vec<Delta>) -> Vec<Delta> {
    let mut out = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Content(text) => content(&text, &mut out),
            Delta::Reasoning(text) => super::reasoning(&text, &mut out),
            call => out.push(call),
        }
    }
    out
}

fn said(text: &str) -> Delta {
    Delta::Content(text.to_owned())
}

fn thought(text: &str) -> Delta {
    Delta::Reasoning(text.to_owned())
}

fn called(index: u32, name: &str, arguments: &str) -> Delta {
    Delta::ToolCall { index, name: name.to_owned(), arguments: arguments.to_owned() }
}

#[test]
fn reasoning_and_content_are_told_apart() {
    assert_eq!(parse("<think>\nX\n</think>\nY"), [thought("X"), said("Y")]);
    assert_eq!(parse(" \n<think>\n\nX y\n\n</think>\n\n  Y\n"), [thought("X y"), said("  Y\n")]);
    assert_eq!(parse("<think></think>Y"), [said("Y")]);
    assert_eq!(parse("<think>\n</think>\n"), []);
}

#[test]
fn text_without_reasoning_is_content_as_it_stands() {
    assert_eq!(parse(""), []);
    assert_eq!(parse(" a < b\n"), [said(" a < b\n")]);
    assert_eq!(parse("a <think>b</think>"), [said("a <think>b</think>")]);
    assert_eq!(parse("\n<thi"), [said("\n<thi")]);
    assert_eq!(parse("a </think> <tool_cal"), [said("a </think> <tool_cal")]);
}

#[test]
fn reasoning_may_be_cut_short() {
    assert_eq!(parse("<think>\nX </thi"), [thought("X </thi")]);
    assert_eq!(parse("<think>\nX\n"), [thought("X")]);
}

#[test]
fn calls_are_read_one_a_line() {
    let text = "<think>\nT\n</think>\nSure.\n<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": \"}<\\\"\"}]}}\n\
                {\"name\": \"g\", \"arguments\": {}}\n</tool_calls>";
    let calls = [called(0, "f", r#"{"a": [1, {"b": "}<\""}]}"#), called(1, "g", "{}")];
    assert_eq!(parse(text), [vec![thought("T"), said("Sure.")], calls.to_vec()].concat());
}

#[test]
fn calls_inside_reasoning_are_reasoning() {
    let text = "<think>\n<tool_calls>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_calls>\n</think>\nY";
    assert_eq!(parse(text), [thought("<tool_calls>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_calls>"), said("Y")]);
}

#[test]
fn a_block_may_stay_open_but_half_a_call_is_no_call() {
    assert_eq!(parse("<tool_calls>\n{\"name\": \"f\", \"arguments\": {}}"), [called(0, "f", "{}")]);
    assert_eq!(parse("<tool_calls>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_ca"), [called(0, "f", "{}")]);
    assert_eq!(parse("<tool_calls>{\"name\": \"f\", \"arg"), [said("{\"name\": \"f\", \"arg")]);
}

#[test]
fn braces_too_many_or_too_few_are_repaired() {
    assert_eq!(
        parse("<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}}}\n</tool_calls>"),
        [called(0, "f", "{\"a\": 1}")]
    );
    assert_eq!(parse("<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}\n</tool_calls>"), [called(0, "f", "{\"a\": 1}")]);
    assert_eq!(parse("<tool_calls>{\"name\": \"f\", \"arguments\": {}}}"), [called(0, "f", "{}")]);
}

#[test]
fn objects_over_several_lines_and_arguments_in_a_string_are_read() {
    assert_eq!(parse("<tool_calls>\n{\n \"name\": \"f\",\n \"arguments\": {\n}\n}\n</tool_calls>"), [called(0, "f", "{\n}")]);
    assert_eq!(parse(r#"<tool_calls>{"name": "f", "arguments": "{\"a\": 1}"}</tool_calls>"#), [called(0, "f", r#"{"a": 1}"#)]);
    assert_eq!(parse(r#"<tool_calls>{"name": "f"}</tool_calls>"#), [called(0, "f", "{}")]);
}

#[test]
fn what_is_no_call_is_content() {
    assert_eq!(parse("<tool_calls>\nnone\n{\"name\": \"f\"}\n</tool_calls>"), [said("\nnone\n"), called(0, "f", "{}")]);
    assert_eq!(
        parse("<tool_calls>{\"name\": \"f\n{\"name\": \"g\"}</tool_calls>"),
        [said("{\"name\": \"f\n"), called(0, "g", "{}")]
    );
    assert_eq!(
        parse("<tool_calls>{\"name\": \"f\", \"arguments\": 3}</tool_calls>!"),
        [said("{\"name\": \"f\", \"arguments\": 3}!")]
    );
}

#[test]
fn text_and_blocks_may_follow_a_block() {
    let text = "<tool_calls>\n{\"name\": \"f\"}\n</tool_calls>\nand\n<tool_calls>{\"name\": \"g\"}</tool_calls>";
    assert_eq!(parse(text), [called(0, "f", "{}"), said("and"), called(1, "g", "{}")]);
}

#[test]
fn without_tools_the_block_is_content() {
    let text = "<think>a</think>\nb\n<tool_calls>\n{\"name\": \"f\"}\n</tool_calls>";
    assert_eq!(parse_as(text, Calls::Keep), [thought("a"), said("b\n<tool_calls>\n{\"name\": \"f\"}\n</tool_calls>")]);
}

#[test]
fn the_phase_follows_the_text() {
    let mut parser = OutputParser::new(Calls::Parse);
    assert_eq!(parser.phase(), Phase::Start);
    parser.push("<think>");
    assert_eq!(parser.phase(), Phase::Reasoning);
    parser.push("a</think>b");
    assert_eq!(parser.phase(), Phase::Content);
    parser.push("<tool_calls>{\"name\": \"f\"}");
    assert_eq!((parser.phase(), parser.tool_calls()), (Phase::ToolCalls, 1));
}

#[test]
fn what_never_ends_is_read_once() {
    // A model that repeats itself; read anew with each character, any of these would take hours.
    const LONG: usize = 1 << 20;
    let blank = || "\n \t".chars().cycle().take(LONG).collect::<String>();
    for (front, repeated) in [
        ("", blank()),
        ("<think>", blank()),
        ("<think>x", blank()),
        ("x", blank()),
        ("x\n<tool_call", "s".repeat(LONG)),
        ("<tool_calls>", blank()),
        ("<tool_calls>", "},".repeat(LONG / 2)),
        ("<tool_calls>", "x".repeat(LONG)),
        ("<tool_calls>x", " ".repeat(LONG)),
        ("<tool_calls>x", "</".repeat(LONG / 2)),
        ("<tool_calls>", "{".repeat(LONG)),
        ("<tool_calls>{\"", "\\".repeat(LONG)),
    ] {
        let mut parser = OutputParser::new(Calls::Parse);
        let mut out = parser.push(front);
        let mut letter = [0; 4];
        for c in repeated.chars() {
            out.extend(parser.push(c.encode_utf8(&mut letter)));
        }
        out.extend(parser.finish());
        let written = out.iter().map(|delta| match delta {
            Delta::Reasoning(text) | Delta::Content(text) => text.len(),
            Delta::ToolCall { .. } => panic!("{front:?} and {:?}: a call", &repeated[..4]),
        });
        assert!(written.sum::<usize>() <= front.len() + LONG);
    }
}
