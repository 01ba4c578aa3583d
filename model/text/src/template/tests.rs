//! Templates of several makes, on a tokenizer of one control token.

use serde_json::json;

use super::*;

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
 "added_tokens": [{"id": 5, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
 "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
 "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
  "fuse_unk": false, "byte_fallback": false, "vocab": {"<": 0, "e": 1, "n": 2, "d": 3, ">": 4}, "merges": []}}"#;

fn checkpoint(config: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), TOKENIZER).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn open(template: &str) -> Result<(Tokenizer, ChatTemplate), TemplateError> {
    let dir = checkpoint(&json!({"eos_token": {"content": "<end>"}, "chat_template": template}));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    ChatTemplate::open(dir.path(), &tokenizer).map(|template| (tokenizer, template))
}

fn render(template: &str, text: &str) -> Result<String, RenderError> {
    open(template).unwrap().1.render_user(text).map(|prompt| prompt.text())
}

/// The variables that a template is given, as JSON.
pub(crate) fn context_of(mut conversation: Conversation, parts: bool, inline_calls: bool) -> Value {
    if inline_calls {
        conversation.inline_calls();
    }
    let control = ControlTokens::new([]).unwrap();
    let marking = Marking { control: Arc::new(control), mark: None };
    let context = Context::new(conversation, ContentForm { parts, inline_calls }, marking);
    serde_json::to_value(minijinja::Value::from_object(context)).unwrap()
}

#[test]
fn a_callers_control_token_is_text() {
    let (tokenizer, template) = open("{% for m in messages %}{{ m.content }}<end>{% endfor %}").unwrap();
    assert_eq!(tokenizer.eos_ids(), [5]);
    let prompt = template.render_user("e<end>n<en").unwrap();
    assert_eq!(prompt.text(), "e<end>n<en<end>");
    let expected = [1, 0, 1, 2, 3, 4, 2, 0, 1, 2, 5];
    assert_eq!(tokenizer.encode_prompt(&prompt).unwrap(), expected);
    assert_eq!(tokenizer.decode(&expected), "e<end>n<en");
    assert_eq!(tokenizer.decode_with_control(&expected), prompt.text());
    assert_eq!(tokenizer.encode("e<end>").unwrap(), [1, 5]);
}

#[test]
fn a_template_may_want_parts() {
    let template = "{% for m in messages %}{{ m['content'][0]['text'] }};{% endfor %}";
    let (_, template) = open(template).unwrap();
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]);
    let text = template.render(&messages, None).unwrap().text();
    assert_eq!(text, "a;<tool_calls>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_calls>;");
}

#[test]
fn pythons_words_and_methods_work() {
    let template = "{% for m in messages %}\n  {% if m.content.strip().startswith('a') %}\n{{ m.content.strip() }} {{ m.none }}{{ none }} \
                    {{ true }} {{ 1.0 }} {{ {'b': [1, '<']} | tojson }}{% endif %}\n{% endfor %}{{ messages[0].content }}";
    assert_eq!(render(template, " a ").unwrap(), "a None True 1.0 {\"b\": [1, \"<\"]} a ");
}

#[test]
fn a_template_may_refuse() {
    let template = "{% if messages[0].content == 'no' %}{{ raise_exception('never') }}{% endif %}{{ messages[0].content }}";
    assert_eq!(render(template, "yes").unwrap(), "yes");
    let error = render(template, "no").unwrap_err();
    assert_eq!((error.reason(), error.field()), ("TemplateRefused", "messages"));
    assert_eq!(error.to_string(), "messages: the chat template refuses them: never");
}

#[test]
fn templates_that_cannot_work_are_told() {
    assert_eq!(open("{% for %}").unwrap_err().reason(), "TemplateInvalid");
    assert_eq!(open("hello").unwrap_err().reason(), "TemplateUnusable");
}

#[test]
fn the_template_is_found_in_a_list_and_in_a_file() {
    let content = "{{ messages[0].content }}";
    let list = json!([{"name": "rag", "template": "x"}, {"name": "default", "template": format!("{content}!")}]);
    let dir = checkpoint(&json!({"eos_token": "<end>", "chat_template": list}));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let read = || ChatTemplate::open(dir.path(), &tokenizer).unwrap().render_user("a").unwrap().text();
    assert_eq!(read(), "a!");
    std::fs::write(dir.path().join("chat_template.jinja"), format!("{content}?")).unwrap();
    assert_eq!(read(), "a?");
}

#[test]
fn missing_files_and_tokens_are_named() {
    let dir = checkpoint(&json!({"eos_token": "<stop>"}));
    assert_eq!(Tokenizer::open(dir.path()).unwrap_err().reason(), "EndTokenUnknown");
    let dir = checkpoint(&json!({"eos_token": "<end>"}));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(ChatTemplate::open(dir.path(), &tokenizer).unwrap_err().reason(), "TemplateMissing");
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(Tokenizer::open(dir.path()).unwrap_err().reason(), "TokenizerUnreadable");
}

#[test]
fn tools_are_looked_at_where_they_stand() {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{% for t in tools %}{{ t.function.name }} {{ t is mapping }} \
                    {% for key, value in t.function.parameters.items() %}{{ key }}={{ value | tojson }};{% endfor %}\
                    {% for one in t.function.parameters.enum %}{{ one }},{% endfor %}{{ t.function.nothing is defined }} {% endfor %}\
                    {{ tools | length }} {{ tools[-1].type }} {{ tools | tojson }}{% endif %}";
    let (tokenizer, template) = open(template).unwrap();
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"enum": [1, -2, 3.0, "a\n", null], "<end>": {"a": [] }}}}]);
    let messages = json!([{"role": "user", "content": "x"}]);
    let prompt = template.render(&messages, Some(&tools)).unwrap();
    let parameters = "{\"enum\": [1, -2, 3.0, \"a\\n\", null], \"<end>\": {\"a\": []}}";
    let expected = format!(
        "xf True enum=[1, -2, 3.0, \"a\\n\", null];<end>={{\"a\": []}};1,-2,3.0,a\n,None,False 1 function \
         [{{\"type\": \"function\", \"function\": {{\"name\": \"f\", \"parameters\": {parameters}}}}}]"
    );
    assert_eq!(prompt.text(), expected);
    // What a caller wrote is no control token, in a key as little as in a text.
    assert!(
        prompt.mark().is_some()
            && !tokenizer.control().split(prompt.marked()).any(|part| matches!(part, crate::control::Part::Control(_)))
    );
}

#[test]
fn a_rendering_that_cannot_fit_ends_early() {
    let (_, template) = open("{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    let never = std::sync::atomic::AtomicBool::new(false);
    let render = |text: &str, tokens| template.render_within(Conversation::of_user(text), &Bounds { tokens, cancelled: &never });
    // The longest token is <end>.
    assert!(render(&"e".repeat(50), 10).is_ok());
    let error = render(&"e".repeat(51), 10).unwrap_err();
    assert_eq!((error.reason(), error.to_string().as_str()), ("TextTooLong", "the text has 51 bytes or more, at least 11 tokens"));
    never.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(render("e", 10).unwrap_err().reason(), "Cancelled");
}
