//! Finds the functions of blanked code and counts their lines.

/// One function with a body.
#[derive(Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Line of `fn`, from 1.
    pub line: usize,
    /// Lines from `fn` to the closing brace.
    pub lines: usize,
}

/// Every function with a body, inner ones too.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find("fn ").map(|at| from + at) {
        from = at + 3;
        let word_before = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let name: String = code[from..].trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if word_before || name.is_empty() {
            continue;
        }
        if let Some(end) = body_end(&code[from..]).map(|end| from + end) {
            let line_of = |at: usize| code[..at].matches('\n').count() + 1;
            found.push(Function { name, line: line_of(at), lines: line_of(end) - line_of(at) + 1 });
        }
    }
    found
}

/// Where the body ends that begins with the first brace outside brackets; none for a declaration.
fn body_end(code: &str) -> Option<usize> {
    let (mut brackets, mut braces) = (0i32, 0i32);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' if brackets == 0 || braces > 0 => braces += 1,
            '}' if braces > 0 => {
                braces -= 1;
                if braces == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_with_bodies_are_counted() {
        let code = "trait T {\n    fn a(&self);\n    fn b(x: [u8; 3]) -> u8 {\n        { 1 }\n    }\n}\nconst F: fn (u8) = g;\nfn c() {}\n";
        let found: Vec<(String, usize, usize)> = functions(code).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("b".to_owned(), 3, 3), ("c".to_owned(), 8, 1)]);
    }
}
