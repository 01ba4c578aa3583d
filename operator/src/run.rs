//! The process: admin server, lease, watches, reconciles; and the order in which they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, controller, watcher};
use kube::{Api, Client, ResourceExt};
use m1_operator_api::{MiniMaxM1Deployment, labels};
use m1_operator_plan::Kind;
use m1_runtime::admin::{Admin, Checks, Unwell};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Key, taken};
use crate::certificates::Certificates;
use crate::cluster;
use crate::config::Config;
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::notes::Notes;
use crate::reconcile::{Context, reconcile, retry, selector, served_kinds};
use crate::relist::{Change, Relist};
use crate::report::Teller;
use crate::workers::Workers;

/// Changes that wait for the queue; watches pause when it is full.
const CHANGES: usize = 4096;

/// How long reconciles that run may go on at the end: less than what a lost lease leaves before another process may act.
const LAST_WRITES: std::time::Duration = std::time::Duration::from_secs(3);

/// What the admin server says.
struct Health {
    started: AtomicBool,
    /// It leads and does not know yet what there is.
    listing: AtomicBool,
    metrics: Metrics,
}

impl Checks for Health {
    fn started(&self) -> Result<(), Unwell> {
        match self.started.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(Unwell::new("Starting", "the API server has not answered yet")),
        }
    }

    // A candidate that waits is as well as it can be; a leader that may not list what it needs does nothing.
    fn ready(&self) -> Result<(), Unwell> {
        self.started()?;
        match self.listing.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Unwell::new("Listing", "not all first lists are whole; the log says which watch cannot read and why")),
        }
    }

    fn live(&self) -> Result<(), Unwell> {
        Ok(())
    }

    fn metrics(&self) -> Result<String, Unwell> {
        self.metrics.text().map_err(|error| Unwell::new("MetricsFailed", error.to_string()))
    }
}

/// Runs until SIGTERM or SIGINT, or until another process leads.
///
/// # Errors
/// The cluster cannot be reached at the start, an address cannot be bound, or leadership was lost.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut stop = Box::pin(m1_runtime::shutdown::signal());
    let metrics = Metrics::new().context("cannot register metrics")?;
    let admin = Admin::bind(config.admin).await.context("--admin")?;
    let health = Arc::new(Health { started: AtomicBool::new(false), listing: AtomicBool::new(false), metrics: metrics.clone() });
    let ended = CancellationToken::new();
    let server = tokio::spawn(admin.serve(health.clone(), ended.clone().cancelled_owned()));
    let cluster = kube::Config::infer().await.context("no cluster: neither a kubeconfig nor a service account")?;
    let client = ClientBuilder::try_from(cluster).context("no client for the cluster")?;
    let client = client.with_layer(&metrics.count_requests()).build();
    let version = client.apiserver_version().await.context("the API server does not answer")?;
    tracing::info!(version = version.git_version, "the API server answers");
    health.started.store(true, Ordering::Relaxed);
    let outcome = lead(&config, client, &health, &mut stop).await;
    ended.cancel();
    server.await.ok();
    outcome
}

async fn lead(
    config: &Config,
    client: Client,
    health: &Health,
    stop: &mut (impl Future<Output = m1_runtime::shutdown::Signal> + Unpin),
) -> anyhow::Result<()> {
    let metrics = &health.metrics;
    let Some(lease) = &config.lease else {
        act(config, client, health, 0, stop.map(|_| ())).await;
        return Ok(());
    };
    let leadership = Leadership::new(client.clone(), &config.namespace, &config.identity, lease.clone());
    tracing::info!(lease = lease.name, namespace = config.namespace, "waits for the lease");
    let transitions = tokio::select! {
        transitions = leadership.acquire() => transitions,
        _ = &mut *stop => return Ok(()),
    };
    tracing::info!(transitions, "leads");
    metrics.leader.set(1);
    let lost = AtomicBool::new(false);
    let kept = leadership.keep();
    let end = async {
        tokio::select! {
            () = kept => lost.store(true, Ordering::Relaxed),
            _ = stop => {}
        }
    };
    act(config, client, health, transitions, end).await;
    metrics.leader.set(0);
    if lost.load(Ordering::Relaxed) {
        anyhow::bail!("another process may lead now; this one ends and begins anew as a candidate");
    }
    // After everything that acts has ended: the next leader must not meet this one.
    leadership.release().await;
    Ok(())
}

/// Watches and reconciles until `end`; then lets reconciles that run come to their end.
async fn act(config: &Config, client: Client, health: &Health, lease_transitions: u64, end: impl Future<Output = ()>) {
    let metrics = &health.metrics;
    health.listing.store(true, Ordering::Relaxed);
    let (changes, changed) = mpsc::channel(CHANGES);
    let mut end = std::pin::pin!(end);
    let workers = Arc::new(Workers::new(changes.clone()));
    let mut tasks = JoinSet::new();
    let start = async {
        let served = served_kinds(&client, config.watch.first().map(String::as_str)).await;
        let cache = Arc::new(Cache::new(changes.clone(), served.clone()));
        let store = watch_all(&mut tasks, config, &client, &cache, &served, changes).await;
        (cache, store)
    };
    // A start can take long: the lease is renewed and signals are heard meanwhile.
    let (cache, store) = tokio::select! {
        () = &mut end => return,
        started = start => started,
    };
    health.listing.store(false, Ordering::Relaxed);
    // A lease that was lost counts from 0 again, and workers believe nobody who counts less than they have heard.
    let lease_transitions = lease_transitions.max(cache.lease_transitions());
    let reporter = Reporter { controller: labels::MANAGER.to_owned(), instance: Some(config.identity.clone()) };
    let (teller, tell) = Teller::new(Recorder::new(client.clone(), reporter));
    let telling = tokio::spawn(tell);
    let context = Arc::new(Context {
        client,
        config: config.clone(),
        cache: Arc::clone(&cache),
        workers: Arc::clone(&workers),
        certificates: Certificates::default(),
        teller,
        metrics: metrics.clone(),
        lease_transitions,
        notes: Notes::default(),
    });
    let (halt, halted) = oneshot::channel::<()>();
    let requests = tokio_stream_of(changed).take_until(halted.map(|_| ()));
    let requests = requests.map(|key: Key| Ok::<_, std::convert::Infallible>(reference(&key)));
    let settings = controller::Config::default().concurrency(config.concurrency);
    let gauges = (metrics.clone(), store.clone(), Arc::clone(&cache), Arc::clone(&context));
    let reconciles = controller::applier(
        |deployment, context| Box::pin(reconcile(deployment, context)),
        retry,
        context,
        store,
        requests,
        settings,
    );
    let reconciles = reconciles.for_each(move |outcome| {
        let (metrics, store, cache, context) = &gauges;
        if let Err(controller::Error::ObjectNotFound(gone)) = outcome {
            context.forget(&Key { namespace: gone.namespace.clone().unwrap_or_default(), name: gone.name.clone() });
        }
        let (objects, pods) = cache.size();
        metrics.deployments.set(store.len() as i64);
        metrics.objects.set(objects as i64);
        metrics.pods.set(pods as i64);
        std::future::ready(())
    });
    let mut reconciles = Box::pin(reconciles);
    tokio::select! {
        () = &mut end => {}
        () = &mut reconciles => {}
        Some(ended) = tasks.join_next() => tracing::error!(?ended, "a watch ended"),
    }
    tracing::info!("stopping");
    drop(halt);
    // The queue is closed: what runs comes to its end, what waits is the next leader's.
    let _ = tokio::time::timeout(LAST_WRITES, reconciles).await;
    // With the reconciles ends the last that tells: what waits to be told is told yet, because nobody else will.
    let _ = tokio::time::timeout(LAST_WRITES, telling).await;
    workers.forget_all();
    tasks.shutdown().await;
}

fn tokio_stream_of<T>(receiver: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
}

/// Starts every watch and waits until each has listed once: what is not known yet must not be taken for missing.
async fn watch_all(
    tasks: &mut JoinSet<()>,
    config: &Config,
    client: &Client,
    cache: &Arc<Cache>,
    served: &[Kind],
    changes: mpsc::Sender<Key>,
) -> Store<MiniMaxM1Deployment> {
    let mut lists = Vec::new();
    let mut listed = || {
        let (sender, receiver) = oneshot::channel();
        lists.push(receiver);
        Some(sender)
    };
    let namespaces: Vec<Option<&str>> = match config.watch.is_empty() {
        true => vec![None],
        false => config.watch.iter().map(|namespace| Some(namespace.as_str())).collect(),
    };
    // A page of a list is read as values, which take several times its text: small ones keep a start from taking more memory than the
    // work after it.
    let ours = watcher::Config::default().labels(&selector()).page_size(100);
    for namespace in &namespaces {
        for kind in served {
            let events = watcher(cluster::api_in(client, *kind, *namespace), ours.clone()).default_backoff();
            tasks.spawn(Arc::clone(cache).follow_objects(*kind, events, listed()));
        }
        let pods = watcher(cluster::typed_in::<Pod>(client, *namespace), ours.clone()).default_backoff();
        tasks.spawn(Arc::clone(cache).follow_pods(pods, listed()));
        // Nobody waits for these: they explain, and decide nothing.
        let warnings = watcher::Config::default().fields("type=Warning");
        let warnings = watcher(cluster::typed_in(client, *namespace), warnings).default_backoff();
        tasks.spawn(Arc::clone(cache).follow_warnings(warnings));
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = watcher(nodes, watcher::Config::default()).default_backoff();
    tasks.spawn(Arc::clone(cache).follow_nodes(nodes, listed()));
    futures_util::future::join_all(lists).await;
    cache.listed();
    let (reader, mut writer) = reflector::store();
    // The store counts as complete from here on; what is in it comes one by one, because each namespace has a watch of its own.
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitDone);
    let writer = Arc::new(tokio::sync::Mutex::new(writer));
    for namespace in &namespaces {
        let events = watcher(cluster::typed_in(client, *namespace), watcher::Config::default()).default_backoff();
        tasks.spawn(follow_deployments(events, reader.clone(), Arc::clone(&writer), changes.clone()));
    }
    reader
}

/// Follows the deployments of one namespace, or of all, into the store.
async fn follow_deployments(
    events: impl futures_util::Stream<Item = watcher::Result<Event<MiniMaxM1Deployment>>> + Send,
    reader: Store<MiniMaxM1Deployment>,
    writer: Arc<tokio::sync::Mutex<reflector::store::Writer<MiniMaxM1Deployment>>>,
    changes: mpsc::Sender<Key>,
) {
    let (mut events, mut relist) = (std::pin::pin!(events), Relist::default());
    while let Some(event) = events.next().await {
        let changed = match taken("MiniMaxM1Deployment", &mut relist, event, |deployment| Some(Key::of(deployment))) {
            Change::Nothing => Vec::new(),
            Change::Is(key, mut deployment) => {
                deployment.managed_fields_mut().clear();
                writer.lock().await.apply_watcher_event(&Event::Apply(deployment));
                vec![key]
            }
            Change::Gone { gone, .. } => {
                for deployment in gone.iter().filter_map(|key| reader.get(&reference(key))) {
                    writer.lock().await.apply_watcher_event(&Event::Delete(deployment.as_ref().clone()));
                }
                gone
            }
        };
        for key in changed {
            let _ = changes.send(key).await;
        }
    }
}

fn reference(key: &Key) -> ObjectRef<MiniMaxM1Deployment> {
    ObjectRef::new(&key.name).within(&key.namespace)
}
