//! Control tokens in text: where they are, and how text that only looks like one is kept apart.
//!
//! A *mark* is one Unicode noncharacter put behind the first character of a look-alike, which breaks it. Marks exist only between
//! rendering and encoding; the encoder takes them out of the pieces between control tokens.

use serde_json::Value;

/// A part of a text, split at control tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Text(&'a str),
    Control(u32),
}

/// The control tokens of a tokenizer, longest name first.
#[derive(Debug, Default, Clone)]
pub(crate) struct ControlTokens(Vec<(String, u32)>);

impl ControlTokens {
    pub(crate) fn new(tokens: impl IntoIterator<Item = (String, u32)>) -> Self {
        let mut tokens: Vec<_> = tokens.into_iter().filter(|(name, _)| !name.is_empty()).collect();
        tokens.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        Self(tokens)
    }

    /// Splits `text` at control tokens; leftmost, then longest.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
        while let Some(c) = text[at..].chars().next() {
            let Some((name, id)) = self.0.iter().find(|(name, _)| text[at..].starts_with(name.as_str())) else {
                at += c.len_utf8();
                continue;
            };
            if start < at {
                parts.push(Part::Text(&text[start..at]));
            }
            parts.push(Part::Control(*id));
            at += name.len();
            start = at;
        }
        if start < text.len() {
            parts.push(Part::Text(&text[start..]));
        }
        parts
    }

    /// Whether a control token starts at the front of `text`, or could once more text follows.
    fn looms(&self, text: &str) -> bool {
        self.0.iter().any(|(name, _)| text.starts_with(name.as_str()) || name.starts_with(text))
    }

    /// Breaks every look-alike in `text`, also one that a following piece of text could complete.
    fn mark(&self, text: &str, mark: char) -> String {
        let mut out = String::with_capacity(text.len() + 8);
        for (at, c) in text.char_indices() {
            out.push(c);
            if self.looms(&text[at..]) {
                out.push(mark);
            }
        }
        out
    }

    /// Breaks the look-alikes in every string and key of `value`. Gives the mark it used: none where there was nothing to break.
    ///
    /// # Errors
    /// `Err(())` when the text holds every one of the 32 noncharacters that may serve as a mark.
    pub(crate) fn mark_all(&self, value: &mut Value) -> Result<Option<char>, ()> {
        if !any_text(value, &mut |text| text.char_indices().any(|(at, _)| self.looms(&text[at..]))) {
            return Ok(None);
        }
        let mark = ('\u{FDD0}'..='\u{FDEF}').find(|&mark| !any_text(value, &mut |text| text.contains(mark))).ok_or(())?;
        map_text(value, &|text| self.mark(text, mark));
        Ok(Some(mark))
    }
}

fn any_text(value: &Value, test: &mut impl FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Array(items) => items.iter().any(|item| any_text(item, test)),
        Value::Object(fields) => fields.iter().any(|(key, item)| test(key) || any_text(item, test)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn map_text(value: &mut Value, change: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| map_text(item, change)),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(key, mut item)| {
                    map_text(&mut item, change);
                    (change(&key), item)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokens() -> ControlTokens {
        ControlTokens::new([("<end>".to_owned(), 7), ("<end>>".to_owned(), 8)])
    }

    #[test]
    fn splits_leftmost_longest() {
        assert_eq!(tokens().split("a<end>b<end>>"), [Part::Text("a"), Part::Control(7), Part::Text("b"), Part::Control(8)]);
        assert_eq!(tokens().split(""), []);
    }

    #[test]
    fn marks_whole_and_unfinished_look_alikes() {
        let mut value = json!({"a": "x <end> y", "b": ["<en", "d>"], "<end>": 1});
        let mark = tokens().mark_all(&mut value).unwrap().unwrap();
        let text =
            format!("{}{}{}", value["a"].as_str().unwrap(), value["b"][0].as_str().unwrap(), value["b"][1].as_str().unwrap());
        assert!(tokens().split(&text).iter().all(|part| matches!(part, Part::Text(_))));
        assert_eq!(text.replace(mark, ""), "x <end> y<end>");
        assert!(value.get("<end>").is_none());
    }

    #[test]
    fn plain_text_needs_no_mark_and_a_taken_mark_is_passed_over() {
        assert_eq!(tokens().mark_all(&mut json!("a < b")), Ok(None));
        assert_eq!(tokens().mark_all(&mut json!("\u{fdd0}<end>")), Ok(Some('\u{fdd1}')));
        let every: String = ('\u{FDD0}'..='\u{FDEF}').collect();
        assert_eq!(tokens().mark_all(&mut json!(every + "<end>")), Err(()));
    }
}
