//! Fetches against a server of this process that speaks the hub's protocol and is a plain file server, with faults in its way. The
//! material is the demo checkpoint, in three shards: everything but experts, experts 0 to 15, experts 16 to 31.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use m1_arch::ExpertSet;
use m1_weights::source::{Location, Progress, Retry, Settings, Snapshot, Source, SourceError, Token};
use m1_weights::{Checkpoint, TensorName, plan_read};
use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::json;
use support::repository;
use support::server::{COMMIT, Fault, Server};

const OTHER: &str = "model-0.safetensors";
const LOWER: &str = "model-1.safetensors";
const UPPER: &str = "model-2.safetensors";

type Files = BTreeMap<String, Vec<u8>>;

/// The demo checkpoint in three shards.
fn files() -> Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(split).clone()
}

fn split() -> Files {
    let demo = repository("demo/m1-demo");
    let mut files = Files::new();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        files.insert(name.into(), fs::read(demo.join(name)).unwrap());
    }
    files.insert("README.md".into(), b"not fetched".to_vec());
    let shards = ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"].map(|s| fs::read(demo.join(s)).unwrap());
    let mut groups: BTreeMap<&str, Vec<(String, TensorView<'_>)>> = BTreeMap::new();
    for shard in &shards {
        for (name, view) in SafeTensors::deserialize(shard).unwrap().tensors() {
            let expert = name.split_once(".experts.").map(|(_, rest)| rest.split('.').next().unwrap().parse::<u32>().unwrap());
            let file = expert.map_or(OTHER, |expert| if expert < 16 { LOWER } else { UPPER });
            groups.entry(file).or_default().push((name, view));
        }
    }
    let weight_map: BTreeMap<_, _> = groups.iter().flat_map(|(file, list)| list.iter().map(|(n, _)| (n.clone(), *file))).collect();
    files.insert("model.safetensors.index.json".into(), json!({ "weight_map": weight_map }).to_string().into_bytes());
    for (file, tensors) in groups {
        files.insert(file.into(), safetensors::serialize(tensors, None).unwrap());
    }
    files
}

/// A server, an empty cache, and the ways to use them.
struct Ground {
    server: Server,
    cache: tempfile::TempDir,
    token: Option<Token>,
    streams: usize,
}

impl Ground {
    fn new() -> Self {
        Self { server: Server::start(files()), cache: tempfile::tempdir().unwrap(), token: None, streams: 2 }
    }

    fn source(&self, location: &str) -> Arc<Source> {
        let mut settings = Settings::new(self.cache.path());
        settings.hub = self.server.address();
        settings.token = self.token.clone();
        settings.streams = self.streams;
        let pause = Duration::from_millis(1);
        settings.retry = Retry { tries: 4, first_pause: pause, longest_pause: pause };
        Source::open(&location.parse::<Location>().unwrap(), &settings).unwrap().unwrap()
    }

    fn hub(&self) -> Arc<Source> {
        self.source("hf://own/model")
    }

    fn web(&self) -> Arc<Source> {
        self.source(&self.server.plain())
    }
}

fn on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn names(shards: &[&str]) -> Vec<String> {
    shards.iter().map(|name| (*name).to_owned()).collect()
}

/// That a snapshot's file is whole and right.
fn whole(snapshot: &Snapshot, name: &str) -> bool {
    fs::read(snapshot.dir().join(name)).unwrap() == files()[name]
}

/// The error, which must have this reason and these words; a token is in none.
fn refused<T>(result: Result<T, SourceError>, reason: &str, transient: bool, words: &[&str]) {
    let error = result.err().unwrap();
    let text = error.to_string();
    assert_eq!((error.reason(), error.is_transient()), (reason, transient), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert!(!text.contains("hf_secret"), "{text}");
}

/// Requests for a shard's content, by file name.
fn asked(log: &[String], name: &str) -> usize {
    log.iter().filter(|line| line.starts_with("cdn ") && line.contains(name)).count()
}

#[test]
fn a_worker_gets_headers_then_the_shards_of_its_experts_and_no_others() {
    let ground = Ground { token: Token::new("hf_secret\n"), ..Ground::new() };
    ground.server.change(|state| state.token = Some("hf_secret".into()));
    let snapshot = ground.hub().headers(&mut on).unwrap();
    assert!(snapshot.dir().ends_with(format!("models--own--model/snapshots/{COMMIT}")), "{}", snapshot.dir().display());
    assert!(whole(&snapshot, "tokenizer.json") && !snapshot.dir().join("README.md").exists());
    let checkpoint = Checkpoint::open(&snapshot.dir()).unwrap();
    let sparse = fs::metadata(snapshot.dir().join(UPPER)).unwrap();
    assert_eq!(sparse.len(), files()[UPPER].len() as u64);
    assert!(sparse.blocks() * 512 < sparse.len() / 2, "{} blocks are no hole", sparse.blocks());
    let arch = checkpoint.architecture();
    let (layers, experts) = (arch.layers.len(), arch.experts);
    let lower = ExpertSet::from_hex(layers, experts, &"ffff0000".repeat(8)).unwrap();
    let plan = plan_read(&checkpoint, &lower);
    assert_eq!(plan.shards, [OTHER, LOWER]);
    ground.server.cdn_saw_no_token();
    ground.server.log();
    assert!(!snapshot.has(&plan.shards));
    let mut last = None;
    snapshot
        .fetch(&plan.shards, &mut |progress| {
            last = Some(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
    let total = (files()[OTHER].len() + files()[LOWER].len()) as u64;
    assert_eq!(last, Some(Progress { files: 2, files_total: 2, bytes: total, bytes_total: total }));
    assert!(snapshot.has(&plan.shards) && !snapshot.has(&names(&[UPPER])));
    ground.server.cdn_saw_no_token();
    let log = ground.server.log();
    assert_eq!((asked(&log, OTHER), asked(&log, LOWER), asked(&log, UPPER)), (1, 1, 0), "{log:#?}");
    // The same digest, and every planned tensor is that of the demo.
    let (again, demo) = (Checkpoint::open(&snapshot.dir()).unwrap(), Checkpoint::open(&repository("demo/m1-demo")).unwrap());
    assert_eq!(again.digest(), checkpoint.digest());
    for name in &plan.tensors {
        assert!(again.tensor(name).unwrap().data == demo.tensor(name).unwrap().data, "{name:?}");
    }
}

#[test]
fn what_is_here_is_not_asked_for_again_and_a_commit_needs_no_network() {
    let ground = Ground::new();
    ground.hub().headers(&mut on).unwrap().fetch(&names(&[OTHER]), &mut on).unwrap();
    ground.server.log();
    ground.hub().headers(&mut on).unwrap().fetch(&names(&[OTHER]), &mut on).unwrap();
    assert_eq!(ground.server.log(), ["hub /api/models/own/model/revision/main - -"]);
    // The hub is away.
    ground.server.fault("hub ", usize::MAX, Fault::Status(503, "x: y"));
    let snapshot = ground.hub().headers(&mut on).unwrap();
    assert!(whole(&snapshot, OTHER) && snapshot.has(&names(&[OTHER])));
    ground.server.log();
    ground.source(&format!("hf://own/model@{COMMIT}")).headers(&mut on).unwrap();
    assert_eq!(ground.server.log(), [""; 0]);
}

#[test]
fn a_router_gets_config_and_tokenizer_only() {
    for web in [false, true] {
        let ground = Ground::new();
        let source = if web { ground.web() } else { ground.hub() };
        let snapshot = source.texts(&mut on).unwrap();
        let mut here: Vec<_> = fs::read_dir(snapshot.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        here.sort();
        assert_eq!(here, ["config.json", "tokenizer.json", "tokenizer_config.json"]);
        assert!(whole(&snapshot, "config.json"));
        assert!(!ground.server.log().iter().any(|line| line.contains("safetensors")));
    }
}

#[test]
fn a_branch_that_moves_does_not_mix_files() {
    let ground = Ground::new();
    let first = ground.hub().headers(&mut on).unwrap();
    ground.server.change(|state| {
        state.main = COMMIT.replace('0', "f");
        state.files.get_mut("tokenizer_config.json").unwrap().push(b'\n');
    });
    let second = ground.hub().headers(&mut on).unwrap();
    assert_ne!(first.dir(), second.dir());
    let read = |snapshot: &Snapshot| fs::read(snapshot.dir().join("tokenizer_config.json")).unwrap().len();
    assert_eq!(read(&first) + 1, read(&second));
    // What is the same in both is fetched once.
    let log = ground.server.log();
    assert_eq!((asked(&log, OTHER), log.iter().filter(|line| line.contains("tokenizer.json")).count()), (1, 1), "{log:#?}");
}

#[test]
fn a_cut_connection_goes_on_where_it_stopped() {
    for web in [false, true] {
        let ground = Ground { streams: 1, ..Ground::new() };
        let snapshot = if web { ground.web() } else { ground.hub() }.headers(&mut on).unwrap();
        // More often than there are tries: each brings something.
        ground.server.fault(LOWER, 7, Fault::Cut(300_000));
        ground.server.log();
        snapshot.fetch(&names(&[LOWER]), &mut on).unwrap();
        assert!(whole(&snapshot, LOWER));
        let log = ground.server.log();
        // Of what hub and CDN are asked, the answers that carry bytes.
        let lines: Vec<_> = log.iter().filter(|line| line.contains(LOWER) && (web || line.starts_with("cdn "))).collect();
        assert!(lines.len() >= 4 && lines[1].contains(" 300000- "), "{lines:#?}");
    }
}

#[test]
fn a_fetch_that_was_stopped_goes_on_in_the_next_process() {
    let ground = Ground { streams: 1, ..Ground::new() };
    let snapshot = ground.hub().headers(&mut on).unwrap();
    ground.server.fault("cdn ", 2, Fault::Cut(100_000));
    let stop = |_| ControlFlow::Break(());
    let have = || {
        fs::read_dir(ground.cache.path().join("models--own--model/blobs")).unwrap().any(|entry| {
            let entry = entry.unwrap();
            entry.file_name().to_string_lossy().ends_with(".incomplete") && entry.metadata().unwrap().len() > 0
        })
    };
    ground.server.fault("cdn ", usize::MAX, Fault::Status(503, "x: y"));
    refused(snapshot.fetch(&names(&[LOWER]), &mut on), "SourceUnreachable", true, &[LOWER, "in 4 tries without progress", "503"]);
    assert!(have());
    ground.server.change(|state| state.faults.clear());
    refused(snapshot.fetch(&names(&[UPPER]), &mut { stop }), "Stopped", false, &[]);
    ground.server.log();
    let again = ground.hub().headers(&mut on).unwrap();
    again.fetch(&names(&[LOWER]), &mut on).unwrap();
    assert!(whole(&again, LOWER));
    let log = ground.server.log();
    assert!(log.iter().any(|line| line.starts_with("cdn ") && line.contains(" 200000- ")), "{log:#?}");
}

#[test]
fn a_server_that_knows_no_ranges_is_read_from_the_beginning() {
    let ground = Ground { streams: 1, ..Ground::new() };
    ground.server.fault("/plain", usize::MAX, Fault::NoRange);
    let snapshot = ground.web().headers(&mut on).unwrap();
    ground.server.change(|state| state.faults.clear());
    ground.server.fault(OTHER, 2, Fault::NoRangeCut(50_000));
    ground.server.fault(OTHER, 1, Fault::NoRange);
    snapshot.fetch(&names(&[OTHER]), &mut on).unwrap();
    assert!(whole(&snapshot, OTHER));
    // One that never comes further is given up.
    ground.server.fault(LOWER, usize::MAX, Fault::NoRangeCut(50_000));
    let what = ["50000 of", LOWER];
    refused(snapshot.fetch(&names(&[LOWER]), &mut on), "SourceUnreachable", true, &what);
}

#[test]
fn a_file_that_changes_between_two_tries_starts_anew() {
    let ground = Ground { streams: 1, ..Ground::new() };
    let snapshot = ground.web().headers(&mut on).unwrap();
    let changed = {
        let mut bytes = files()[LOWER].clone();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    // It changes after the first 100000 bytes; the length stays.
    ground.server.fault(LOWER, 1, Fault::Cut(100_000));
    let (mut seen, new) = (0, changed.clone());
    ground.server.change(|state| {
        state.watch = Some(Box::new(move |line, files| {
            seen += usize::from(line.contains(LOWER));
            if seen == 2 {
                files.insert(LOWER.into(), new.clone());
            }
        }));
    });
    let url = format!("{}/{LOWER}", ground.server.plain());
    refused(snapshot.fetch(&names(&[LOWER]), &mut on), "SourceChanged", true, &[LOWER, &url, "ETag"]);
    ground.server.change(|state| state.watch = None);
    let again = ground.web().headers(&mut on).unwrap();
    assert_ne!(again.dir(), snapshot.dir());
    again.fetch(&names(&[LOWER]), &mut on).unwrap();
    assert!(fs::read(again.dir().join(LOWER)).unwrap() == changed, "not a mixture of both");
}

#[test]
fn a_wrong_checksum_is_fetched_once_more_then_named() {
    for (location, part) in [("hf://own/model", "cdn "), ("", "/plain")] {
        let ground = Ground { streams: 1, ..Ground::new() };
        ground.server.change(|state| state.sums = true);
        let location = if location.is_empty() { ground.server.plain() } else { location.to_owned() };
        let snapshot = ground.source(&location).headers(&mut on).unwrap();
        ground.server.fault(part, 1, Fault::Damage);
        snapshot.fetch(&names(&[OTHER]), &mut on).unwrap();
        assert!(whole(&snapshot, OTHER));
        ground.server.fault(part, usize::MAX, Fault::Damage);
        ground.server.log();
        let result = snapshot.fetch(&names(&[LOWER]), &mut on);
        refused(result, "ChecksumMismatch", false, &[LOWER, &ground.server.address(), "twice"]);
        let log = ground.server.log();
        assert_eq!(log.iter().filter(|line| line.contains(part)).count(), 2, "{log:#?}");
        assert!(!snapshot.has(&names(&[LOWER])));
    }
    // Small files too.
    let ground = Ground::new();
    ground.server.fault("resolve/0123456789abcdef0123456789abcdef01234567/tokenizer.json", 2, Fault::Damage);
    refused(ground.hub().texts(&mut on), "ChecksumMismatch", false, &["tokenizer.json"]);
}

#[test]
fn refusals_say_what_to_do_and_are_not_repeated() {
    let status = |status, header, reason: &str, words: &[&str]| {
        let ground = Ground::new();
        ground.server.fault("hub ", usize::MAX, Fault::Status(status, header));
        refused(ground.hub().texts(&mut on), reason, false, words);
        assert_eq!(ground.server.log().len(), 1);
    };
    status(
        403,
        "x-error-code: GatedRepo",
        "GatedRepository",
        &["own/model@main", "accept its licence", "tokenSecret", "/api/models/own/model"],
    );
    status(401, "x-error-code: GatedRepo", "GatedRepository", &["accept its licence"]);
    status(401, "x-error-code: RepoNotFound", "TokenNeeded", &["401", "give a token"]);
    status(403, "x: y", "AccessDenied", &["may not read it"]);
    status(404, "x-error-code: RepoNotFound", "RepositoryNotFound", &["no such repository"]);
    status(418, "x: y", "SourceRefused", &["418"]);
    let ground = Ground { token: Token::new("hf_secret"), ..Ground::new() };
    ground.server.change(|state| state.token = Some("another".into()));
    refused(ground.hub().headers(&mut on), "TokenRefused", false, &["own/model@main", "tokenSecret", "the token is wrong"]);
    let ground = Ground::new();
    refused(
        ground.source("hf://own/model@v9").headers(&mut on),
        "RevisionNotFound",
        false,
        &["own/model@v9", "branch, tag or commit"],
    );
    let url = format!("{}/nowhere", ground.server.plain());
    refused(ground.source(&url).headers(&mut on), "FileNotFound", false, &["config.json", &url]);
    ground.server.change(|state| state.files.remove(UPPER));
    refused(ground.hub().headers(&mut on), "FileNotFound", false, &[UPPER]);
    refused(ground.web().headers(&mut on), "FileNotFound", false, &[UPPER]);
}

#[test]
fn a_server_in_trouble_is_asked_again_at_the_time_it_names() {
    let ground = Ground::new();
    ground.server.fault("revision", 1, Fault::Status(503, "x: y"));
    ground.server.fault("tree", 1, Fault::Status(429, "retry-after: 1"));
    let began = Instant::now();
    ground.hub().texts(&mut on).unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let ground = Ground::new();
    ground.server.fault("revision", usize::MAX, Fault::Status(503, "x: y"));
    refused(
        ground.hub().texts(&mut on),
        "SourceUnreachable",
        true,
        &["own/model@main", "4 tries", "503", &ground.server.address()],
    );
    assert_eq!(ground.server.log().len(), 4);
}

#[test]
fn processes_that_share_a_cache_fetch_every_file_once() {
    let ground = Ground::new();
    // A lock of another opening of the file holds within one process too.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let snapshot = ground.hub().headers(&mut on).unwrap();
                snapshot.fetch(&names(&[OTHER, LOWER, UPPER]), &mut on).unwrap();
                assert!([OTHER, LOWER, UPPER].iter().all(|name| whole(&snapshot, name)));
            });
        }
    });
    let log = ground.server.log();
    for name in [OTHER, LOWER, UPPER] {
        assert_eq!(asked(&log, name), 2, "the header and the whole: {log:#?}");
    }
    assert_eq!(log.iter().filter(|line| line.contains("resolve") && line.contains("tokenizer.json")).count(), 1);
}

#[test]
fn a_header_that_is_none_is_named_and_not_kept() {
    let ground = Ground::new();
    ground.server.change(|state| state.files.get_mut(UPPER).unwrap()[9] = b'!');
    refused(ground.web().headers(&mut on), "ShardHeaderInvalid", false, &[UPPER, "header"]);
    ground.server.change(|state| state.files = files());
    ground.web().headers(&mut on).unwrap();
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let location: Location = "hf://own/model".parse().unwrap();
    let error = Source::open(&location, &Settings::new(file.path())).unwrap_err();
    assert_eq!(error.reason(), "CacheUnusable");
    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    assert!(Source::open(&Location::Folder("x".into()), &Settings::new(Path::new("/nowhere"))).unwrap().is_none());
}

#[test]
fn a_web_address_without_checksums_holds_by_length_and_etag() {
    let ground = Ground::new();
    let snapshot = ground.web().headers(&mut on).unwrap();
    let all = names(&[OTHER, LOWER, UPPER]);
    snapshot.fetch(&all, &mut on).unwrap();
    let checkpoint = Checkpoint::open(&snapshot.dir()).unwrap();
    let demo = Checkpoint::open(&repository("demo/m1-demo")).unwrap();
    for name in TensorName::all(demo.architecture()) {
        assert!(checkpoint.tensor(&name).unwrap().data == demo.tensor(&name).unwrap().data, "{name:?}");
    }
    ground.server.fault("/plain", usize::MAX, Fault::Status(503, "x: y"));
    assert!(ground.web().headers(&mut on).unwrap().has(&all), "the server is away, the cache is not");
}
