//! The command line of `cargo xtask image`, and the images there are.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::programs::Profile;

const MB: u64 = 1_000_000;

/// One of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Operator,
    Router,
    Worker,
    /// The demo checkpoint: data for an image volume, no program.
    DemoModel,
}

impl Kind {
    /// Those of `all`.
    pub const PROGRAMS: [Self; 3] = [Self::Operator, Self::Router, Self::Worker];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Router => "router",
            Self::Worker => "worker",
            Self::DemoModel => "demo-model",
        }
    }

    /// What it holds in /usr/local/bin; the first is the entry point.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Operator => &["m1-operator", "m1ctl"],
            Self::Router => &["m1-router"],
            Self::Worker => &["m1-worker"],
            Self::DemoModel => &[],
        }
    }

    pub fn description(self) -> &'static str {
        match self {
            Self::Operator => "Runs MiniMaxM1Deployments on Kubernetes",
            Self::Router => "OpenAI-compatible endpoint in front of MiniMax-M1 workers",
            Self::Worker => "Serves a part of a MiniMax-M1 model",
            Self::DemoModel => "Demo checkpoint in the format of MiniMax-M1, for an image volume",
        }
    }

    /// Compressed layers at most: what a node pulls in a second or two. Programs are a fraction of it, so that only something that does
    /// not belong inside breaks it.
    pub fn limit(self) -> u64 {
        match self {
            Self::Operator | Self::Router => 60 * MB,
            Self::Worker => 25 * MB,
            Self::DemoModel => 30 * MB,
        }
    }
}

/// A parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Write(Options),
    Check(PathBuf),
}

/// What to write, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub kinds: Vec<Kind>,
    pub profile: Profile,
    /// Folder of the archives; none for `images` below the target directory.
    pub output: Option<PathBuf>,
    pub tag: String,
    /// Folder with built programs; none to build them.
    pub programs: Option<PathBuf>,
}

/// Reads the words behind `image`.
pub fn parse(words: &[&str], version: &str) -> Result<Command> {
    if let ["--check", archive] = words {
        return Ok(Command::Check(archive.into()));
    }
    let mut options =
        Options { kinds: Vec::new(), profile: Profile::Release, output: None, tag: version.to_owned(), programs: None };
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word {
            "all" => options.kinds.extend(Kind::PROGRAMS),
            "operator" => options.kinds.push(Kind::Operator),
            "router" => options.kinds.push(Kind::Router),
            "worker" => options.kinds.push(Kind::Worker),
            "demo" => options.kinds.push(Kind::DemoModel),
            "--profile" => {
                let name = value()?;
                options.profile = Profile::from_name(name).with_context(|| format!("--profile is dev or release, not {name}"))?;
            }
            "--output" => options.output = Some(value()?.into()),
            "--programs" => options.programs = Some(value()?.into()),
            "--tag" => options.tag = checked_tag(value()?)?,
            other => bail!("image: `{other}` is neither an image (operator, router, worker, demo, all) nor an option"),
        }
    }
    if options.kinds.is_empty() {
        options.kinds.extend(Kind::PROGRAMS);
    }
    options.kinds.sort_unstable();
    options.kinds.dedup();
    Ok(Command::Write(options))
}

/// The grammar of tags, from the OCI distribution specification.
fn checked_tag(tag: &str) -> Result<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let sound = tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-');
    ensure!(sound, "--tag {tag}: letters, digits, `_`, `.` and `-`, at most 128, the first neither `.` nor `-`");
    Ok(tag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Options> {
        match parse(words, "0.1.0")? {
            Command::Write(options) => Ok(options),
            Command::Check(_) => bail!("a check"),
        }
    }

    #[test]
    fn all_programs_in_release_by_default() {
        let found = options(&[]).unwrap();
        assert_eq!((found.kinds.as_slice(), found.profile, found.tag.as_str()), (&Kind::PROGRAMS[..], Profile::Release, "0.1.0"));
        assert_eq!(options(&["all"]).unwrap(), found);
        assert_eq!(options(&["worker", "router", "operator", "all"]).unwrap(), found);
    }

    #[test]
    fn options_are_read() {
        let words = ["worker", "--profile", "dev", "--output", "/o", "--tag", "v1", "--programs", "/p"];
        let expected = Options {
            kinds: vec![Kind::Worker],
            profile: Profile::Dev,
            output: Some("/o".into()),
            tag: "v1".into(),
            programs: Some("/p".into()),
        };
        assert_eq!(options(&words).unwrap(), expected);
        assert_eq!(parse(&["--check", "a.tar"], "").unwrap(), Command::Check("a.tar".into()));
        assert_eq!(options(&["demo"]).unwrap().kinds, [Kind::DemoModel]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, message) in [
            (&["wroker"][..], "`wroker` is neither an image"),
            (&["--profile", "fast"], "--profile is dev or release, not fast"),
            (&["--tag", "-x"], "--tag -x: letters"),
            (&["--tag", "a/b"], "--tag a/b: letters"),
            (&["--output"], "--output needs a value"),
            (&["--check"], "`--check` is neither"),
        ] {
            let error = options(words).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
