//! A Rust file as the checks see it: its production part, with comments and the insides of literals blanked out.

/// A Rust file.
pub struct Source {
    code: String,
    test_file: bool,
}

impl Source {
    /// Reads a file. Files under `tests/` and files named `tests.rs` are test code throughout; in others test code begins
    /// at the first `#[cfg(test)]` of the file's own level.
    pub fn new(path: &str, text: &str) -> Self {
        let parts: Vec<&str> = path.split('/').collect();
        let test_crate = parts.first() == Some(&"tests") && parts.get(1) == Some(&"src");
        let test_file = !test_crate && (parts.contains(&"tests") || parts.last() == Some(&"tests.rs"));
        let production = match production_end(text) {
            _ if test_file => "",
            Some(end) => &text[..end],
            None => text,
        };
        Self { code: blank(production), test_file }
    }

    /// The production part, blanked; empty for test files.
    pub fn production_code(&self) -> &str {
        &self.code
    }

    /// Its lines.
    pub fn production_lines(&self) -> usize {
        if self.test_file { 0 } else { self.code.lines().count() }
    }
}

/// Where the trailing test module begins: the first unindented `#[cfg(test)]` that a `mod NAME {` follows.
fn production_end(text: &str) -> Option<usize> {
    let mut offset = 0;
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let module = lines.peek().is_some_and(|next| next.starts_with("mod ") && next.trim_end().ends_with('{'));
        if line.starts_with("#[cfg(test)]") && module {
            return Some(offset);
        }
        offset += line.len();
    }
    None
}

/// Replaces comments and the insides of literals by blanks; line breaks and quotes stay.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word_before = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (length, keep) = token(rest, first, word_before);
        let token = &rest[..length];
        code.extend(token.chars().enumerate().map(|(index, c)| match c {
            '\n' => '\n',
            c if keep || (c == '"' && (index == 0 || index + 1 == token.chars().count())) => c,
            _ => ' ',
        }));
        rest = &rest[length..];
    }
    code
}

/// Length of the token at the start of `rest` in bytes, and whether it is kept as it is.
fn token(rest: &str, first: char, word_before: bool) -> (usize, bool) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), false);
    }
    if let Some(length) = raw_string(rest).filter(|_| !word_before) {
        return (length, false);
    }
    match first {
        '"' => (quoted(rest), false),
        '\'' => match character(rest) {
            Some(length) => (length, false),
            None => (1, true),
        },
        other => (other.len_utf8(), true),
    }
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if tail.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// `r"..."`, `r#"..."#`, and the same with `b` or `c` before.
fn raw_string(rest: &str) -> Option<usize> {
    let prefix = rest.find(|c: char| !matches!(c, 'r' | 'b' | 'c')).filter(|at| (1..=2).contains(at))?;
    let hashes = rest[prefix..].find(|c: char| c != '#')?;
    let body = prefix + hashes + 1;
    if !rest[..prefix].ends_with('r') || !rest[prefix + hashes..].starts_with('"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    Some(rest[body..].find(&close).map_or(rest.len(), |at| body + at + close.len()))
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A character literal; none for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let mut letters = rest.char_indices().skip(1);
    let (_, first) = letters.next()?;
    if first == '\\' {
        letters.next()?;
        return letters.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    letters.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank() {
        for (text, code) in [
            ("a // b {\nc", "a       \nc"),
            ("a /* { /* } */ */ b", "a                 b"),
            (r#"f("{\"}", x)"#, r#"f("    ", x)"#),
            (r###"f(r#"a"{"#)"###, r###"f(        )"###),
            ("'{' 'a 'b'", "    'a    "),
            (r"'\'' x", "     x"),
        ] {
            assert_eq!(blank(text), code, "{text}");
        }
    }

    #[test]
    fn production_ends_where_the_test_module_begins() {
        let text = "//! x\nfn f() {}\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(Source::new("a/src/b.rs", text).production_lines(), 2);
        assert_eq!(Source::new("a/tests/b.rs", text).production_lines(), 0);
        assert_eq!(Source::new("tests/src/b.rs", text).production_lines(), 2);
        let helper = "//! x\n#[cfg(test)]\nmod fake;\nfn f() {}\n";
        assert_eq!(Source::new("a/src/b.rs", helper).production_lines(), 4);
    }
}
