//! How much of a text's end must wait, because it may be the start of something that is still arriving.

/// Length in bytes of the longest end of `text` that `pattern` starts with and goes on from (never the whole pattern).
pub(crate) fn partial_end(text: &str, pattern: &str) -> usize {
    let longest = pattern.len().saturating_sub(1).min(text.len());
    (1..=longest)
        .rev()
        .find(|&n| {
            let start = text.len() - n;
            text.is_char_boundary(start) && pattern.is_char_boundary(n) && text[start..] == pattern[..n]
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::partial_end;

    #[test]
    fn counts_only_unfinished_patterns() {
        assert_eq!(partial_end("abc <thi", "<think>"), 4);
        assert_eq!(partial_end("abc <think>", "<think>"), 0);
        assert_eq!(partial_end("abc", "<think>"), 0);
        assert_eq!(partial_end("", "<think>"), 0);
        assert_eq!(partial_end("aaa", "aaaab"), 3);
        assert_eq!(partial_end("a\u{e9}", "\u{e9}x"), 2);
    }
}
