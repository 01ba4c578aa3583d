//! `kubectl m1 <Tab>`: kubectl starts `kubectl_complete-m1` with the words after `m1` and the one that is being written, and reads
//! `word<Tab>meaning` lines, at their end a directive of cobra. Made from the command line itself; says nothing of errors, because
//! the shell would show them in the middle of a line.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, Command as Words, CommandFactory, Parser, ValueHint};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::args::{Cli, ClusterArgs, Command};
use crate::cluster::Cluster;

/// The name that kubectl looks for.
pub const CALLED: &str = "kubectl_complete-m1";
/// A person waits: longer than this the names are not worth it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Cobra's directive: what is offered is all, files are not.
const NO_FILES: &str = ":4";
/// Cobra's directive: files may follow.
const FILES: &str = ":0";

/// What may stand in place of a word.
#[derive(Debug)]
enum Offer {
    /// One of these, with its meaning.
    Words(Vec<(String, String)>),
    /// A deployment of this cluster.
    Names(Box<ClusterArgs>),
    /// A file.
    Files,
}

/// Prints what may stand in place of the last word.
pub fn run(words: &[String]) -> ExitCode {
    let (last, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let (offered, directive) = match offer(before, last) {
        Offer::Words(words) => (words, NO_FILES),
        Offer::Names(cluster) => (names(&cluster).into_iter().map(|name| (name, String::new())).collect(), NO_FILES),
        Offer::Files => (Vec::new(), FILES),
    };
    for (word, meaning) in offered.iter().filter(|(word, _)| word.starts_with(last)) {
        println!("{}", format!("{word}\t{meaning}").trim_end());
    }
    println!("{directive}");
    ExitCode::SUCCESS
}

fn offer(before: &[String], last: &str) -> Offer {
    let mut root = Cli::command();
    root.build();
    let (mut command, mut waiting, mut places) = (&root, None, 0);
    for word in before {
        match (waiting.take(), command.find_subcommand(word)) {
            (Some(_), _) => {}
            (None, _) if word.starts_with('-') => waiting = flag(command, word),
            (None, Some(found)) => command = found,
            (None, None) => places += 1,
        }
    }
    if let Some(flag) = waiting {
        return value(flag);
    }
    if last.starts_with('-') {
        let flags = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let flags = flags.filter_map(|arg| Some((format!("--{}", arg.get_long()?), first_line(arg.get_help()))));
        return Offer::Words(flags.collect());
    }
    if command.has_subcommands() {
        let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
        return Offer::Words(commands.map(|command| (command.get_name().to_owned(), first_line(command.get_about()))).collect());
    }
    let named = deployment_of(before).map(Offer::Names);
    named.unwrap_or_else(|| command.get_positionals().nth(places).map_or(Offer::Words(Vec::new()), value))
}

/// The flag that a word names and whose value is the next word.
fn flag<'a>(command: &'a Words, word: &str) -> Option<&'a Arg> {
    let named = |arg: &&Arg| match word.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => arg.get_short().is_some_and(|short| word[1..] == *short.to_string()),
    };
    command.get_arguments().find(named).filter(|arg| arg.get_action().takes_values())
}

fn value(arg: &Arg) -> Offer {
    let hints = [ValueHint::AnyPath, ValueHint::FilePath, ValueHint::DirPath];
    if hints.contains(&arg.get_value_hint()) {
        return Offer::Files;
    }
    let values = arg.get_possible_values().into_iter().filter(|value| !value.is_hide_set());
    Offer::Words(values.map(|value| (value.get_name().to_owned(), first_line(value.get_help()))).collect())
}

fn first_line(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// The cluster whose deployments may be named next; none where no NAME is expected.
fn deployment_of(before: &[String]) -> Option<Box<ClusterArgs>> {
    const PROBE: &str = "x";
    let words = ["m1ctl"].into_iter().chain(before.iter().map(String::as_str)).chain([PROBE]);
    let mut command = Cli::try_parse_from(words).ok()?.into_command().ok()?;
    let is_name = match &command {
        Command::Explain(args) => args.name == PROBE,
        Command::Restart(args) | Command::Resume(args) => args.name == PROBE,
        Command::RenewCertificates(args) => args.named.name == PROBE,
        _ => false,
    };
    is_name.then(|| command.cluster().cloned().unwrap_or_default().into())
}

fn names(cluster: &ClusterArgs) -> Vec<String> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let asked = async {
        let cluster = Cluster::connect(cluster).await.ok()?;
        let found = cluster.deployments().list(&ListParams::default()).await.ok()?;
        Some(found.iter().map(ResourceExt::name_any).collect())
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await }).ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(line: &str) -> Offer {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let (last, before) = words.split_last().unwrap();
        offer(before, last)
    }

    fn words(line: &str) -> Vec<String> {
        match offered(line) {
            Offer::Words(words) => words.into_iter().map(|(word, _)| word).collect(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn commands_flags_and_their_values() {
        let commands = words("");
        assert!(commands.contains(&"explain".to_owned()) && !commands.contains(&"probe".to_owned()), "{commands:?}");
        assert!(words("-n models ").contains(&"restart".to_owned()));
        let flags = words("explain m1 --");
        assert!(["--namespace", "--output", "--as"].iter().all(|flag| flags.iter().any(|given| given == flag)), "{flags:?}");
        assert_eq!(words("explain m1 -o "), ["text", "json"]);
        assert_eq!(words("explain m1 -n "), [""; 0]);
        assert_eq!(words("crd "), ["print", "apply"]);
        assert!(matches!(offered("plan -f "), Offer::Files) && matches!(offered("man "), Offer::Files));
        let Offer::Words(commands) = offered("") else { panic!() };
        assert!(commands.iter().all(|(_, meaning)| !meaning.is_empty() && !meaning.contains('\n')), "{commands:?}");
    }

    #[test]
    fn names_are_asked_for_where_one_is_expected() {
        let namespace = |line: &str| match offered(line) {
            Offer::Names(cluster) => cluster.namespace,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(namespace("explain "), None);
        assert_eq!(namespace("-n models restart "), Some("models".to_owned()));
        assert_eq!(namespace("resume -n models "), Some("models".to_owned()));
        assert_eq!(namespace("renew-certificates --authority "), None);
        assert_eq!(words("explain m1 "), [""; 0]);
    }
}
