//! What reading a request takes: at most six times the body and a megabyte, whatever stands in it. `M1_BODY_MB=16` tries larger bodies than CI does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use m1_router::error::ApiError;
use m1_router::model::Model;
use m1_router::order::Limits;
use m1_router::requests::{Context, chat, completions, generate, tokenize};

/// Counts what is allocated, and the most that ever was.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes on to the system's allocator with the caller's own arguments; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        add(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Copy, Debug)]
enum Endpoint {
    Chat,
    Text,
    M1,
    Tokenize,
    Detokenize,
}

fn read(ctx: &Context<'_>, path: Endpoint, body: &[u8]) -> Result<usize, ApiError> {
    let id = "id".to_owned();
    match path {
        Endpoint::Chat => chat::read(ctx, body, id).map(|chat| chat.order.prompt.len()),
        Endpoint::Text => completions::read(ctx, body, id).map(|completion| completion.order.prompt.len()),
        Endpoint::M1 => generate::read(ctx, body, id).map(|generate| generate.order.prompt.len()),
        Endpoint::Tokenize => tokenize::encode(ctx, body).map(|answer| answer.len()),
        Endpoint::Detokenize => tokenize::decode(ctx, body).map(|answer| answer.len()),
    }
}

/// `unit` as often as `bytes` hold, with commas.
fn list(unit: &str, bytes: usize) -> String {
    let mut out = String::with_capacity(bytes);
    out.push('[');
    while out.len() + unit.len() + 1 < bytes {
        out.push_str(unit);
        out.push(',');
    }
    out.push_str(unit);
    out.push(']');
    out
}

fn text(unit: &str, bytes: usize) -> String {
    format!("\"{}\"", unit.repeat(bytes / unit.len()))
}

fn chat_of(fields: &str) -> String {
    format!("{{\"model\": \"m\", {fields}}}")
}

fn chat_text(text: &str) -> String {
    chat_of(&format!("\"messages\": [{{\"role\": \"user\", \"content\": {text}}}]"))
}

fn chat_and(fields: &str) -> String {
    chat_of(&format!("\"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}], {fields}"))
}

fn hostile(bytes: usize) -> Vec<(&'static str, Endpoint, String)> {
    let tool = r#"{"type":"function","function":{"name":"a"}}"#;
    let big_tool = |inside: String| {
        chat_and(&format!(
            "\"tools\": [{{\"type\":\"function\",\"function\":{{\"name\":\"a\",\"parameters\":{{\"x\":{inside}}}}}}}]"
        ))
    };
    let called = r#"{"role":"assistant","content":"","tool_calls":[{"id":"a","function":{"name":"b","arguments":""}}]}"#;
    let fields: Vec<String> = (0..bytes / 12).map(|n| format!("\"{n:07}\":0")).collect();
    let mut cases = vec![
        ("zeros as a prompt", Endpoint::Text, chat_of(&format!("\"prompt\": {}", list("0", bytes)))),
        ("zeros in a list of prompts", Endpoint::Text, chat_of(&format!("\"prompt\": [{}]", list("0", bytes)))),
        ("zeros as input.ids", Endpoint::M1, format!("{{\"input\": {{\"ids\": {}}}}}", list("0", bytes))),
        ("zeros as tokens", Endpoint::Detokenize, format!("{{\"tokens\": {}}}", list("0", bytes))),
        ("long tokens", Endpoint::Detokenize, format!("{{\"tokens\": {}}}", list("2047", bytes))),
        ("zeros as messages", Endpoint::Chat, chat_of(&format!("\"messages\": {}", list("0", bytes)))),
        ("zeros as tools", Endpoint::Chat, chat_and(&format!("\"tools\": {}", list("0", bytes)))),
        ("zeros as stop", Endpoint::Text, chat_of(&format!("\"prompt\": \"a\", \"stop\": {}", list("0", bytes)))),
        ("zeros in an unknown field", Endpoint::Chat, chat_and(&format!("\"unknown\": {}", list("0", bytes)))),
        ("zeros as logit_bias", Endpoint::Chat, chat_and(&format!("\"logit_bias\": {}", list("0", bytes)))),
        (
            "zeros in response_format",
            Endpoint::Chat,
            chat_and(&format!("\"response_format\": {{\"type\": \"text\", \"x\": {}}}", list("0", bytes))),
        ),
        ("brackets", Endpoint::Chat, "[".repeat(bytes)),
        ("brackets in an unknown field", Endpoint::Chat, chat_and(&format!("\"unknown\": {}", "[".repeat(bytes)))),
        ("doubled keys", Endpoint::Chat, chat_and(&("\"stop\": \"a\", ".repeat(bytes / 13) + "\"n\": 1"))),
        ("tiny messages", Endpoint::Chat, chat_of(&format!("\"messages\": {}", list(r#"{"role":"user","content":"a"}"#, bytes)))),
        (
            "tiny system messages",
            Endpoint::Chat,
            chat_of(&format!("\"messages\": {}", list(r#"{"role":"system","content":""}"#, bytes))),
        ),
        ("tiny calls", Endpoint::Chat, chat_of(&format!("\"messages\": {}", list(called, bytes)))),
        ("tiny parts", Endpoint::Chat, chat_text(&list(r#"{"type":"text","text":"a"}"#, bytes))),
        (
            "messages to tokenize",
            Endpoint::Tokenize,
            format!("{{\"messages\": {}}}", list(r#"{"role":"user","content":"a"}"#, bytes)),
        ),
        ("messages as input", Endpoint::M1, format!("{{\"input\": {}}}", list(r#"{"role":"user","content":"a"}"#, bytes))),
        ("tiny tools", Endpoint::Chat, chat_and(&format!("\"tools\": {}", list(tool, bytes)))),
        ("a tool of zeros", Endpoint::Chat, big_tool(list("0", bytes))),
        ("a tool of objects", Endpoint::Chat, big_tool(list("{\"a\":{}}", bytes))),
        ("a tool of many fields", Endpoint::Chat, big_tool(format!("{{{}}}", fields.join(",")))),
        ("a tool with doubled fields", Endpoint::Chat, big_tool(format!("{{{}}}", vec!["\"a\":0"; bytes / 6].join(",")))),
    ];
    let texts = [
        ("words", "The Pod is a container. "),
        ("a word without end", "ab"),
        ("bytes that nothing merges", "\u{7f}q"),
        ("escaped zeros", "\\u0000"),
        ("escaped lines", "\\n"),
        ("look-alikes", "<pad>"),
        ("noncharacters", "\u{fdd0}"),
        ("blanks", " "),
        ("blanks and a word", "   a"),
    ];
    for (name, unit) in texts {
        let text = text(unit, bytes);
        cases.push((name, Endpoint::Chat, chat_text(&text)));
        cases.push((name, Endpoint::Text, chat_of(&format!("\"prompt\": {text}"))));
        cases.push((name, Endpoint::Tokenize, format!("{{\"prompt\": {text}}}")));
        cases.push((name, Endpoint::M1, format!("{{\"input\": {text}}}")));
        let result = format!("{{\"role\":\"tool\",\"name\":\"f\",\"content\":{text}}}");
        cases.push((name, Endpoint::Chat, chat_of(&format!("\"messages\": [{result}]"))));
    }
    cases
}

#[test]
fn reading_takes_six_bodies_and_a_megabyte() {
    let model = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/m1-demo"), "m".to_owned()).unwrap();
    let never = AtomicBool::new(false);
    let random = || 7;
    let megabytes: usize = std::env::var("M1_BODY_MB").map_or(2, |given| given.parse().unwrap());
    let mut over = Vec::new();
    for window in [4096, 10_000_000] {
        let ctx = Context { model: &model, limits: Limits { window, output: None }, cancelled: &never, random: &random };
        // Whatever is made once is made here.
        assert!(read(&ctx, Endpoint::Chat, chat_text("\"a\"").as_bytes()).is_ok());
        for (name, path, body) in hostile(megabytes << 20) {
            let before = NOW.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            let start = Instant::now();
            let result = read(&ctx, path, body.as_bytes());
            let (time, peak) = (start.elapsed(), PEAK.load(Ordering::Relaxed) - before);
            let factor = peak as f64 / body.len() as f64;
            let said = result.as_ref().map_or_else(ToString::to_string, ToString::to_string);
            println!("{window:>8} {path:?} {name}: {factor:.2} bodies, {time:?}: {said}");
            assert!(said.len() < 700, "{said}");
            if peak > 6 * body.len() + (1 << 20) {
                over.push(format!("{window} {path:?} {name}: {factor:.2}"));
            }
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}
