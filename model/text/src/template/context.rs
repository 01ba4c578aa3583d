//! What a template sees of a conversation. Nothing is built ahead: a message is a map only while the template looks at it, its texts are shared, and a
//! tool is a slice of the request's JSON until one of its fields is asked for.

use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr};
use serde_json::value::RawValue;

use super::json::Slice;
use crate::control::ControlTokens;
use crate::conversation::{Call, Conversation, Message, Named, Results, Tool};
use crate::json;

/// What a template can work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentForm {
    /// Content must be a list of parts.
    pub(super) parts: bool,
    /// Past tool calls must be written into the content.
    pub(super) inline_calls: bool,
}

/// How look-alikes of control tokens in the texts are broken.
#[derive(Debug, Clone)]
pub(super) struct Marking {
    pub(super) control: Arc<ControlTokens>,
    pub(super) mark: Option<char>,
}

impl Marking {
    /// `text`, with its look-alikes broken.
    pub(super) fn apply(&self, text: &str) -> Option<String> {
        self.mark.filter(|_| self.control.looms(text)).map(|mark| self.control.mark(text, mark))
    }

    /// Breaks the look-alikes in every text of `conversation`; those of its tools are broken when they are looked at.
    ///
    /// # Errors
    /// `Err(())` when the texts hold every one of the characters that may serve as a mark.
    pub(super) fn of(control: &Arc<ControlTokens>, conversation: &mut Conversation) -> Result<Self, ()> {
        let (mut looms, mut taken) = (false, 0u64);
        let mut look = |text: &str| {
            looms |= control.looms(text);
            taken |= marks_in(text);
        };
        conversation.texts_mut().for_each(|text| look(text));
        if let Some(tools) = &conversation.tools {
            // Tools were read before: they are JSON.
            let _doubled = json::survey(tools, &mut look);
        }
        let mut free = (0u32..).zip(marks()).filter(|(bit, _)| taken & (1 << bit) == 0).map(|(_, mark)| mark);
        let mark = if looms { Some(free.next().ok_or(())?) } else { None };
        let marking = Self { control: Arc::clone(control), mark };
        if mark.is_some() {
            for text in conversation.texts_mut() {
                if let Some(marked) = marking.apply(text) {
                    *text = marked.into();
                }
            }
        }
        Ok(marking)
    }
}

/// What may serve as a mark: characters that no text needs, that nothing trims, and that JSON does not escape; short ones first.
fn marks() -> impl Iterator<Item = char> {
    ('\u{80}'..='\u{9F}').filter(|mark| !mark.is_whitespace()).chain('\u{FDD0}'..='\u{FDEF}')
}

/// Which marks a text holds, as bits in their order.
fn marks_in(text: &str) -> u64 {
    // In UTF-8 they are C2 80..9F and EF B7 90..AF; U+0085 is white space and none of them.
    let bytes = text.as_bytes();
    let mut taken = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let bit = match (byte, bytes.get(at + 1)) {
            (0xC2, Some(last @ 0x80..=0x84)) => last - 0x80,
            (0xC2, Some(last @ 0x86..=0x9F)) => last - 0x81,
            (0xEF, Some(0xB7)) => match bytes.get(at + 2) {
                Some(last @ 0x90..=0xAF) => last - 0x90 + 31,
                _ => continue,
            },
            _ => continue,
        };
        taken |= 1 << bit;
    }
    taken
}

/// The template's variables.
#[derive(Debug)]
pub(super) struct Context {
    messages: Vec<Message>,
    tools: Option<Slice>,
    form: ContentForm,
}

impl Context {
    pub(super) fn new(conversation: Conversation, form: ContentForm, marking: Marking) -> Self {
        let tools = conversation.tools.map(|tools| Slice::new(tools, marking));
        Self { messages: conversation.messages, tools, form }
    }
}

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "messages" => Some(Value::from_object(Messages(Arc::clone(self)))),
            "tools" => self.tools.clone().map(Value::from_object),
            "add_generation_prompt" => Some(Value::from(true)),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.tools {
            Some(_) => Enumerator::Str(&["messages", "add_generation_prompt", "tools"]),
            None => Enumerator::Str(&["messages", "add_generation_prompt"]),
        }
    }
}

#[derive(Debug)]
struct Messages(Arc<Context>);

impl Object for Messages {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = key.as_usize().filter(|at| *at < self.0.messages.len())?;
        Some(Value::from_object(OneMessage { context: Arc::clone(&self.0), at }))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.messages.len())
    }
}

#[derive(Debug)]
struct OneMessage {
    context: Arc<Context>,
    at: usize,
}

impl OneMessage {
    fn message(&self) -> Option<&Message> {
        self.context.messages.get(self.at)
    }

    fn part(&self, list: List) -> Value {
        Value::from_object(Items { context: Arc::clone(&self.context), at: self.at, list })
    }

    fn content(&self, text: &Arc<str>) -> Value {
        if self.context.form.parts { Value::from(vec![text_part(text)]) } else { Value::from(text) }
    }
}

impl Object for OneMessage {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_str()?, self.message()?) {
            ("role", message) => Some(Value::from(role(message))),
            ("content", Message::System(text) | Message::User(text) | Message::Assistant(text)) => Some(self.content(text)),
            ("content", Message::Caller(caller)) => Some(self.content(&caller.content)),
            ("tool_calls", Message::Caller(_)) => Some(self.part(List::Calls)),
            ("content", Message::Tool(tool)) => match &tool.results {
                Results::One(result) if !self.context.form.parts => Some(Value::from(&result.text)),
                Results::One(_) | Results::Several(_) => Some(self.part(List::Results)),
            },
            ("name", Message::Tool(tool)) => match &tool.results {
                Results::One(result) => Some(Value::from(&result.name)),
                Results::Several(_) => None,
            },
            ("tool_call_id", Message::Tool(tool)) => tool.id.as_ref().map(Value::from),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let of_tool = |tool: &Tool| match (&tool.results, &tool.id) {
            (Results::One(_), None) => Enumerator::Str(&["role", "name", "content"]),
            (Results::One(_), Some(_)) => Enumerator::Str(&["role", "name", "content", "tool_call_id"]),
            (Results::Several(_), None) => Enumerator::Str(&["role", "content"]),
            (Results::Several(_), Some(_)) => Enumerator::Str(&["role", "content", "tool_call_id"]),
        };
        match self.message() {
            None => Enumerator::Empty,
            Some(Message::System(_) | Message::User(_) | Message::Assistant(_)) => Enumerator::Str(&["role", "content"]),
            Some(Message::Caller(_)) => Enumerator::Str(&["role", "content", "tool_calls"]),
            Some(Message::Tool(tool)) => of_tool(tool),
        }
    }
}

fn role(message: &Message) -> &'static str {
    match message {
        Message::System(_) => "system",
        Message::User(_) => "user",
        Message::Assistant(_) | Message::Caller(_) => "assistant",
        Message::Tool(_) => "tool",
    }
}

#[derive(Debug, Clone, Copy)]
enum List {
    Calls,
    Results,
}

/// The calls, or the results, of one message.
#[derive(Debug)]
struct Items {
    context: Arc<Context>,
    at: usize,
    list: List,
}

impl Items {
    fn calls(&self) -> &[Call] {
        match (self.list, self.context.messages.get(self.at)) {
            (List::Calls, Some(Message::Caller(caller))) => &caller.calls,
            _ => &[],
        }
    }

    fn results(&self) -> &[Named] {
        match (self.list, self.context.messages.get(self.at)) {
            (List::Results, Some(Message::Tool(tool))) => match &tool.results {
                Results::One(result) => std::slice::from_ref(result),
                Results::Several(results) => results,
            },
            _ => &[],
        }
    }
}

impl Object for Items {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = key.as_usize()?;
        match self.list {
            List::Calls => self.calls().get(at).map(one_call),
            List::Results => self.results().get(at).map(named_part),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(match self.list {
            List::Calls => self.calls().len(),
            List::Results => self.results().len(),
        })
    }
}

fn one_call(call: &Call) -> Value {
    let function = Value::from_pairs([("name", Value::from(&call.name)), ("arguments", Value::from(&call.arguments))]);
    Value::from_pairs([("id", Value::from(&call.id)), ("type", Value::from("function")), ("function", function)])
}

fn named_part(result: &Named) -> Value {
    Value::from_pairs([("name", Value::from(&result.name)), ("type", Value::from("text")), ("text", Value::from(&result.text))])
}

fn text_part(text: &Arc<str>) -> Value {
    Value::from_pairs([("type", Value::from("text")), ("text", Value::from(text))])
}

/// The elements of a JSON array, or the values of an object's fields, are slices again; what is neither is a value.
pub(super) fn of_json(value: &RawValue, slice: &Slice) -> Option<Value> {
    match value.get().as_bytes().first()? {
        b'{' | b'[' => Some(Value::from_object(slice.inner(value))),
        b'"' => {
            let text = json::text(value).ok()??;
            Some(slice.marking().apply(&text).map_or_else(|| Value::from(text), Value::from))
        }
        _ => serde_json::from_str(value.get()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_seen_by_its_own_bit() {
        for (bit, mark) in (0u32..).zip(marks()) {
            assert_eq!(marks_in(&format!("a{mark}\u{85}\u{fdcf}\u{fdf0}\u{a0}")), 1 << bit, "{mark:?}");
        }
        assert_eq!(marks().count(), 63);
    }

    #[test]
    fn a_taken_mark_is_passed_over_until_none_is_left() {
        let control = Arc::new(ControlTokens::new([("<end>".to_owned(), 7)]).unwrap());
        let mark = |text: String| Marking::of(&control, &mut Conversation::of_user(text)).map(|marking| marking.mark);
        assert_eq!(mark("a < b".to_owned()), Ok(None));
        assert_eq!(mark("<end>".to_owned()), Ok(Some('\u{80}')));
        assert_eq!(mark("\u{80}\u{81}<end>".to_owned()), Ok(Some('\u{82}')));
        assert_eq!(mark(marks().collect::<String>() + "<end>"), Err(()));
    }
}
