//! What a command that failed leaves behind: lines for stderr and an exit code.

use std::fmt;

/// A failed command. Each line is printed as `m1ctl: <what>: <why>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    lines: Vec<String>,
    code: u8,
}

impl Failure {
    /// The work failed: exit code 1.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::lines(vec![format!("{what}: {why}")])
    }

    /// Several errors at once, each on its line: exit code 1.
    pub fn lines(lines: Vec<String>) -> Self {
        Self { lines, code: 1 }
    }

    /// The command line asks for what cannot be: exit code 2.
    pub fn usage(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { code: 2, ..Self::new(what, why) }
    }

    /// What the process exits with.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "m1ctl: {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_who_speaks() {
        let failure = Failure::lines(vec!["a.yaml: spec.x: wrong".into(), "a.yaml: spec.y: wrong".into()]);
        assert_eq!(failure.to_string(), "m1ctl: a.yaml: spec.x: wrong\nm1ctl: a.yaml: spec.y: wrong\n");
        assert_eq!((failure.code(), Failure::usage("--expert", "0 given").code()), (1, 2));
    }
}
