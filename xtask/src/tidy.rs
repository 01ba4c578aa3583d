//! Holds the tree to its style. One line per finding: `PATH:LINE: RULE: what is wrong`. A finding may be excepted by a
//! line `PATH RULE` in xtask/tidy-exceptions.txt; an exception that nothing needs is a finding itself.

mod arrows;
mod functions;
mod source;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use source::Source;

/// Longest production part of a file: what one can hold in mind; 300 is the aim.
const MAX_FILE_LINES: usize = 500;
/// Longest function; 30 is the aim.
const MAX_FUNCTION_LINES: usize = 80;
/// Leftovers, spelled in two parts so that this file is not one.
const LEFTOVERS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
const EXCEPTIONS: &str = "xtask/tidy-exceptions.txt";

/// One thing that is not tidy.
#[derive(Debug, PartialEq)]
struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    message: String,
}

/// Checks the tree.
pub fn run(root: &Path) -> Result<String> {
    let files = files(root)?;
    let mut findings = Vec::new();
    for path in &files {
        let text = fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"))?;
        findings.extend(check(path, &text));
    }
    let crates = arrows::check(root, &mut findings)?;
    let text = fs::read_to_string(root.join(EXCEPTIONS)).with_context(|| format!("read {EXCEPTIONS}"))?;
    let findings = except(findings, &text);
    if findings.is_empty() {
        return Ok(format!("tidy: {} files and {crates} pure crates are in order", files.len()));
    }
    for Finding { path, line, rule, message } in &findings {
        eprintln!("{path}:{line}: {rule}: {message}");
    }
    bail!("tidy: {} findings", findings.len());
}

/// Rust files that are or could be committed, but for those that nobody writes.
fn files(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "--", "*.rs", ":!proto/generated"])
        .current_dir(root)
        .output()
        .context("run git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let listed = String::from_utf8(output.stdout).context("git ls-files")?;
    Ok(listed.lines().filter(|path| root.join(path).is_file()).map(str::to_owned).collect())
}

fn check(path: &str, text: &str) -> Vec<Finding> {
    let source = Source::new(path, text);
    let mut findings = Vec::new();
    let mut report = |line, rule, message: String| findings.push(Finding { path: path.to_owned(), line, rule, message });
    if !text.starts_with("//!") {
        report(1, "header", "the file does not open with `//!`: what it owns, what it must not do".to_owned());
    }
    for (index, line) in text.lines().enumerate() {
        if let Some(word) = LEFTOVERS.iter().find(|word| has_word(line, word)) {
            report(index + 1, "leftover", format!("{word}: do it, or open an issue"));
        }
    }
    let lines = source.production_lines();
    if lines > MAX_FILE_LINES {
        report(MAX_FILE_LINES + 1, "file-length", format!("{lines} production lines; at most {MAX_FILE_LINES}"));
    }
    for (index, line) in source.production_code().lines().enumerate() {
        // The crate of suites fails by panicking, as every test does.
        let suites = path.starts_with("tests/");
        if !suites && [".unwrap()", ".expect(\""].iter().any(|call| line.contains(call)) {
            report(index + 1, "panic", "unwrap or expect in production code: return an error".to_owned());
        }
    }
    for function in functions::functions(source.production_code()) {
        if function.lines > MAX_FUNCTION_LINES {
            let message = format!("fn {} has {} lines; at most {MAX_FUNCTION_LINES}", function.name, function.lines);
            report(function.line, "function-length", message);
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|part| part == word)
}

/// Leaves out what is excepted, adds exceptions that nothing needs.
fn except(findings: Vec<Finding>, text: &str) -> Vec<Finding> {
    let exceptions: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let key = |finding: &Finding| format!("{} {}", finding.path, finding.rule);
    let used: Vec<String> = findings.iter().map(key).collect();
    let idle = exceptions.iter().filter(|line| !used.iter().any(|used| used == *line)).map(|line| Finding {
        path: EXCEPTIONS.to_owned(),
        line: 1,
        rule: "exception",
        message: format!("`{line}` is not needed any more: delete it"),
    });
    let idle: Vec<Finding> = idle.collect();
    findings.into_iter().filter(|finding| !exceptions.contains(&key(finding).as_str())).chain(idle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        check(path, text).iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn a_tidy_file() {
        assert_eq!(rules("a/src/lib.rs", "//! What it owns.\n\nfn f() {}\n"), [""; 0]);
    }

    #[test]
    fn each_rule_bites() {
        assert_eq!(rules("a/src/lib.rs", "fn f() {}\n"), ["header"]);
        assert_eq!(rules("a/src/lib.rs", &format!("//! {}: later\n", LEFTOVERS[0])), ["leftover"]);
        assert_eq!(rules("a/src/lib.rs", "//! x\nfn f() { g().unwrap(); }\n"), ["panic"]);
        assert_eq!(rules("a/src/lib.rs", &format!("//! x\n{}", "// y\n".repeat(500))), ["file-length"]);
        assert_eq!(rules("a/src/lib.rs", &format!("//! x\nfn f() {{\n{}}}\n", "    g();\n".repeat(79))), ["function-length"]);
        assert_eq!(rules("a/src/lib.rs", &format!("//! x\nfn f() {{\n{}}}\n", "    g();\n".repeat(78))), [""; 0]);
    }

    #[test]
    fn tests_may_be_long_and_unwrap() {
        let body = format!("fn f() {{\n{}}}\n", "    g().unwrap();\n".repeat(600));
        assert_eq!(rules("a/tests/suite.rs", &format!("//! x\n{body}")), [""; 0]);
        assert_eq!(rules("a/src/lib.rs", &format!("//! x\n#[cfg(test)]\nmod tests {{\n{body}}}\n")), [""; 0]);
    }

    #[test]
    fn exceptions_may_only_shrink() {
        let finding = || Finding { path: "a.rs".into(), line: 7, rule: "header", message: String::new() };
        assert_eq!(except(vec![finding()], "# why\na.rs header\n"), []);
        assert_eq!(except(vec![finding()], ""), [finding()]);
        assert_eq!(except(vec![], "a.rs header\n")[0].rule, "exception");
    }
}
