//! The command line: what is taken, and what is refused by its name.
use super::*;

const LINE: [&str; 5] = ["m1-router", "--model", "/models/m1", "--max-context", "4096"];

fn parse(more: &[&str]) -> Result<Args, clap::error::ErrorKind> {
    Args::try_parse_from(LINE.iter().chain(more)).map_err(|error| error.kind())
}

fn config(more: &[&str]) -> Result<Config, ConfigError> {
    Config::try_from(parse(more).unwrap())
}

#[test]
fn one_flag_is_one_group() {
    let config = config(&["--workers", "a:1, b:1", "--workers", "[::1]:3"]).unwrap();
    let groups = [vec!["a:1".to_owned(), "b:1".to_owned()], vec!["[::1]:3".to_owned()]];
    assert_eq!(config.source, Source::Fixed(Topology::fixed(&groups)));
    assert_eq!(config.served_name, "m1");
    assert_eq!((config.patience.limit, config.patience.wait.as_secs()), (256, 60));
    assert_eq!((config.grace.delay.as_secs(), config.grace.drain.as_secs()), (0, 5));
}

#[test]
fn workers_are_somebodys() {
    let more = ["--workers", "a:1,b:1", "--workers", "c:1", "--deployment-id", "local/m1/0b54", "--listen-fd", "7"];
    let config = config(&more).unwrap();
    assert_eq!(config.listen_fd, Some(7));
    let Source::Fixed(topology) = config.source else { panic!("they were named") };
    let members: Vec<&str> =
        topology.groups.values().flat_map(|group| &group.pods).filter_map(|pod| pod.member.as_deref()).collect();
    assert_eq!(members, ["local/m1/0b54/0/0", "local/m1/0b54/0/1", "local/m1/0b54/1/0"]);
}

#[test]
fn a_deployment_stands_for_workers() {
    let source = |more: &[&str]| config(more).unwrap().source;
    let deployment = |namespace: Option<&str>| {
        let name = ResourceName::new("m1-demo").unwrap();
        Source::Kubernetes(Deployment { name, namespace: namespace.map(str::to_owned) })
    };
    assert_eq!(source(&["--deployment", "m1-demo"]), deployment(None));
    assert_eq!(source(&["--deployment", "m1-demo", "--namespace", "serving"]), deployment(Some("serving")));
}

#[test]
fn groups_are_named_in_one_way() {
    use clap::error::ErrorKind;
    let refused = |more: &[&str]| parse(more).unwrap_err();
    assert_eq!(refused(&[]), ErrorKind::MissingRequiredArgument);
    assert_eq!(refused(&["--workers", "a:1", "--deployment", "m1"]), ErrorKind::ArgumentConflict);
    assert_eq!(refused(&["--workers", "a:1", "--namespace", "x"]), ErrorKind::ArgumentConflict);
    assert_eq!(refused(&["--namespace", "x"]), ErrorKind::MissingRequiredArgument);
    assert_eq!(refused(&["--deployment-id", "a/b/c"]), ErrorKind::MissingRequiredArgument);
    assert_eq!(refused(&["--deployment", "m1", "--deployment-id", "a/b/c"]), ErrorKind::ArgumentConflict);
    let mut both = parse(&["--workers", "a:1"]).unwrap();
    both.deployment = Some("m1".into());
    assert_eq!(Config::try_from(both), Err(ConfigError::Groups("both")));
}

#[test]
fn wrong_arguments_are_named() {
    let message = |more: &[&str]| config(more).unwrap_err().to_string();
    let worker = |more: &[&str]| message(&[&["--workers", "a:1"], more].concat());
    assert_eq!(message(&["--workers", "a"]), "--workers: given \"a\", allowed: HOST:PORT");
    assert_eq!(message(&["--workers", "a:0"]), "--workers: given \"a:0\", allowed: HOST:PORT");
    assert_eq!(message(&["--workers", "a:1,a:1"]), "--workers: \"a:1\" is given twice");
    assert_eq!(worker(&["--deployment-id", "m1"]), "--deployment-id: given \"m1\", allowed: NAMESPACE/NAME/UID");
    assert_eq!(worker(&["--listen", ":80"]), "--listen: given \":80\", allowed: HOST:PORT");
    assert_eq!(worker(&["--served-name", " "]), "--served-name: given \" \", allowed: at least one character");
    assert_eq!(worker(&["--queue-wait", "0"]), "--queue-wait: given 0, allowed: 1 to 86400");
    assert_eq!(worker(&["--max-output-tokens", "0"]), "--max-output-tokens: given 0, allowed: 1 and more");
    assert_eq!(worker(&["--shutdown-delay", "3601"]), "--shutdown-delay: given 3601, allowed: 0 to 3600");
    assert_eq!(worker(&["--drain-seconds", "86401"]), "--drain-seconds: given 86401, allowed: 0 to 86400");
    assert!(message(&["--deployment", "M1"]).starts_with("--deployment: given \"M1\", allowed: lower-case letters"));
    assert_eq!(message(&["--deployment", "m1", "--namespace", ""]), "--namespace: given \"\", allowed: at least one character");
    let reason = |change: fn(&mut Args)| {
        let mut args = parse(&["--workers", "a:1"]).unwrap();
        change(&mut args);
        Config::try_from(args).unwrap_err().reason()
    };
    assert_eq!(reason(|args| args.max_context = 1), "BadNumber");
    assert_eq!(reason(|args| args.model = Location::Folder("/".into())), "BadName");
}
