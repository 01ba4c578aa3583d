//! Control tokens in text: where they are, and how text that only looks like one is kept apart.
//!
//! A *mark* is one character that no text needs, put behind the first character of a look-alike, which breaks it. Marks exist only between
//! rendering and encoding; the encoder takes them out of the pieces between control tokens.

use std::iter::from_fn;

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind};

/// A part of a text, split at control tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Text(&'a str),
    Control(u32),
}

/// The control tokens of a tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct ControlTokens {
    names: Vec<(String, u32)>,
    /// Finds the leftmost, then longest.
    finder: AhoCorasick,
    /// Bytes of the longest name.
    longest: usize,
    /// Which bytes a name begins with.
    firsts: [bool; 256],
}

impl ControlTokens {
    /// # Errors
    /// Names too long or too many for the automaton.
    pub(crate) fn new(tokens: impl IntoIterator<Item = (String, u32)>) -> Result<Self, aho_corasick::BuildError> {
        let names: Vec<_> = tokens.into_iter().filter(|(name, _)| !name.is_empty()).collect();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(aho_corasick::StartKind::Unanchored)
            .build(names.iter().map(|(name, _)| name))?;
        let longest = names.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut firsts = [false; 256];
        names.iter().filter_map(|(name, _)| name.bytes().next()).for_each(|first| firsts[usize::from(first)] = true);
        Ok(Self { names, finder, longest, firsts })
    }

    /// Splits `text` at control tokens; leftmost, then longest.
    pub(crate) fn split<'a>(&self, text: &'a str) -> impl Iterator<Item = Part<'a>> {
        let mut found = self.finder.find_iter(text).fuse();
        let (mut at, mut held) = (0, None);
        from_fn(move || {
            if let Some((end, id)) = held.take() {
                at = end;
                return Some(Part::Control(id));
            }
            let next = found.next();
            let (start, end) = next.map_or((text.len(), text.len()), |next| (next.start(), next.end()));
            let id = next.and_then(|next| self.names.get(next.pattern().as_usize())).map(|(_, id)| *id);
            let before = text.get(at..start).filter(|before| !before.is_empty());
            match (before, id) {
                (Some(before), id) => {
                    held = id.map(|id| (end, id));
                    at = start;
                    if id.is_none() {
                        at = text.len();
                    }
                    Some(Part::Text(before))
                }
                (None, Some(id)) => {
                    at = end;
                    Some(Part::Control(id))
                }
                (None, None) => None,
            }
        })
    }

    /// Whether a control token is written in `text`, or begins at its end.
    pub(crate) fn looms(&self, text: &str) -> bool {
        self.next(text, 0).is_some()
    }

    /// Where the next look-alike begins, from `at` on: a whole one, or one that more text could complete.
    fn next(&self, text: &str, at: usize) -> Option<usize> {
        let input = Input::new(text).range(at..).anchored(Anchored::No);
        if let Some(found) = self.finder.find(input) {
            return Some(found.start());
        }
        // A name that the text ends within is shorter than the longest.
        let tail = at.max(text.len().saturating_sub(self.longest));
        (tail..text.len()).filter(|at| text.is_char_boundary(*at)).find(|at| self.begins(&text[*at..]))
    }

    fn begins(&self, rest: &str) -> bool {
        let first = rest.bytes().next().is_some_and(|first| self.firsts[usize::from(first)]);
        first && self.names.iter().any(|(name, _)| name.starts_with(rest))
    }

    /// Breaks every look-alike in `text`, also one that a following piece of text could complete.
    pub(crate) fn mark(&self, text: &str, mark: char) -> String {
        let mut out = String::with_capacity(text.len() + 16);
        let mut at = 0;
        while let Some(start) = self.next(text, at) {
            let end = start + text[start..].chars().next().map_or(1, char::len_utf8);
            out.push_str(&text[at..end]);
            out.push(mark);
            at = end;
        }
        out.push_str(&text[at..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> ControlTokens {
        ControlTokens::new([("<end>".to_owned(), 7), ("<end>>".to_owned(), 8)]).unwrap()
    }

    fn split(text: &str) -> Vec<Part<'_>> {
        tokens().split(text).collect::<Vec<_>>()
    }

    #[test]
    fn splits_leftmost_longest() {
        assert_eq!(split("a<end>b<end>>"), [Part::Text("a"), Part::Control(7), Part::Text("b"), Part::Control(8)]);
        assert_eq!(split("<end><end>a"), [Part::Control(7), Part::Control(7), Part::Text("a")]);
        assert_eq!(split(""), []);
    }

    #[test]
    fn marks_whole_and_unfinished_look_alikes() {
        for (text, expected) in [
            ("x <end> y", "x <!end> y"),
            ("<en", "<!en"),
            ("<end><e", "<!end><!e"),
            ("<end>>", "<!end>>"),
            ("a < b", "a < b"),
            ("\u{e9}<", "\u{e9}<!"),
        ] {
            assert_eq!(tokens().mark(text, '!'), expected);
            assert_eq!(tokens().looms(text), text != expected);
        }
    }

    #[test]
    fn overlapping_look_alikes_are_all_broken() {
        let tokens = ControlTokens::new([("aba".to_owned(), 1), ("bab".to_owned(), 2)]).unwrap();
        let marked = tokens.mark("ababab!", '-');
        assert_eq!(marked.replace('-', ""), "ababab!");
        assert!(tokens.split(&marked).all(|part| matches!(part, Part::Text(_))), "{marked}");
    }
}
