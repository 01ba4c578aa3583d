//! The process: admin server, lease, watches, reconciles; and the order in which they end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DynamicObject, ListParams};
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::Store;
use kube::runtime::{WatchStreamExt, controller, watcher};
use kube::{Api, Client};
use m1_operator_api::{MiniMaxM1Deployment, labels};
use m1_operator_plan::Kind;
use m1_runtime::admin::{Admin, Checks, Unwell};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::cache::{Cache, Key};
use crate::certificates::Certificates;
use crate::cluster;
use crate::config::Config;
use crate::deployments::{self, Deployments};
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::notes::Notes;
use crate::reconcile::{Context, reconcile, retry, selector, served_kinds};
use crate::report::Teller;
use crate::workers::Workers;

/// Changes that wait for the queue; watches pause when it is full.
const CHANGES: usize = 4096;

/// How long reconciles that run may go on at the end: less than what a lost lease leaves before another process may act.
const LAST_WRITES: std::time::Duration = std::time::Duration::from_secs(3);

/// Namespaces that may not be read are tried again after this.
const CLOSED: std::time::Duration = std::time::Duration::from_secs(60);
/// Between two looks for changed GPUs.
const NODES: std::time::Duration = std::time::Duration::from_secs(2);

/// What the admin server says.
struct Health {
    started: AtomicBool,
    /// It leads and does not know yet what there is.
    listing: Arc<AtomicBool>,
    /// What it knows, where it leads.
    known: Mutex<Option<(Store<MiniMaxM1Deployment>, Arc<Cache>)>>,
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
        if let Some((store, cache)) = &*self.known.lock().unwrap_or_else(PoisonError::into_inner) {
            let (objects, pods) = cache.size();
            self.metrics.deployments.set(store.len() as i64);
            self.metrics.objects.set(objects as i64);
            self.metrics.pods.set(pods as i64);
        }
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
    let (started, listing) = (AtomicBool::new(false), Arc::default());
    let health = Arc::new(Health { started, listing, known: Mutex::default(), metrics: metrics.clone() });
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
        let (watched, closed) = readable(&client, &config.watch).await;
        if !closed.is_empty() {
            tasks.spawn(until_readable(client.clone(), closed));
        }
        let served = served_kinds(&client, watched.first().map(String::as_str)).await;
        let cache = Arc::new(Cache::new(changes.clone(), served.clone()));
        let listing = Arc::clone(&health.listing);
        let store = watch_all(&mut tasks, &watched, &client, &cache, (&served, listing), changes.clone()).await;
        tasks.spawn(follow_gpus(Arc::clone(&cache), store.clone(), changes));
        (cache, store)
    };
    // A start can take long: the lease is renewed and signals are heard meanwhile.
    let (cache, store) = tokio::select! {
        () = &mut end => return,
        started = start => started,
    };
    *health.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((store.clone(), Arc::clone(&cache)));
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
    let requests = requests.map(|key: Key| Ok::<_, std::convert::Infallible>(deployments::reference(&key)));
    let settings = controller::Config::default().concurrency(config.concurrency);
    let looks = TaskTracker::new();
    let look = |deployment, context: Arc<Context>| Box::pin(in_a_task(looks.clone(), reconcile(deployment, context)));
    let known = Arc::clone(&context);
    let reconciles = controller::applier(look, retry, context, store, requests, settings);
    let reconciles = reconciles.for_each(move |outcome| {
        if let Err(controller::Error::ObjectNotFound(gone)) = outcome {
            known.forget(&Key { namespace: gone.namespace.clone().unwrap_or_default(), name: gone.name.clone() });
        }
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
    looks.close();
    looks.wait().await;
    // With the reconciles ends the last that tells: what waits to be told is told yet, because nobody else will.
    let _ = tokio::time::timeout(LAST_WRITES, telling).await;
    workers.forget_all();
    tasks.shutdown().await;
}

/// Runs a look as a task, so that looks share all cores; it ends when nobody waits for it any more.
async fn in_a_task<T: Send + 'static>(tasks: TaskTracker, look: impl Future<Output = T> + Send + 'static) -> T {
    let task = AbortOnDropHandle::new(tasks.spawn(look));
    match task.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(outcome) => outcome,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The process ends.
        Err(Err(_)) => std::future::pending().await,
    }
}

fn tokio_stream_of<T>(receiver: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
}

/// Starts every watch and waits until each but the deployments' own has listed once: what is not known yet must not be taken for missing.
/// `listing` ends with the last list.
async fn watch_all(
    tasks: &mut JoinSet<()>,
    watched: &[String],
    client: &Client,
    cache: &Arc<Cache>,
    (served, listing): (&[Kind], Arc<AtomicBool>),
    changes: mpsc::Sender<Key>,
) -> Store<MiniMaxM1Deployment> {
    let mut lists = Vec::new();
    let mut listed = || {
        let (sender, receiver) = oneshot::channel();
        lists.push(receiver);
        Some(sender)
    };
    let namespaces: Vec<Option<&str>> = match watched.is_empty() {
        true => vec![None],
        false => watched.iter().map(|namespace| Some(namespace.as_str())).collect(),
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
    let deployments = Arc::new(Deployments::new(client.clone(), changes));
    let mut lists = Vec::new();
    for namespace in &namespaces {
        let api = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &deployments::resource()),
            None => Api::all_with(client.clone(), &deployments::resource()),
        };
        let (sender, receiver) = oneshot::channel();
        lists.push(receiver);
        let events = watcher(api, watcher::Config::default()).default_backoff();
        tasks.spawn(Arc::clone(&deployments).follow(events, Some(sender)));
    }
    // Nobody waits for these here: looks begin with the first that is known, or many would fill the queue.
    tokio::spawn(async move {
        futures_util::future::join_all(lists).await;
        listing.store(false, Ordering::Relaxed);
    });
    deployments.store.clone()
}

/// Those namespaces that may be read, and those that may not: one that is gone, and its Role with it, must not stop the others. Where none
/// may be read, all are watched, and the operator is not ready.
async fn readable(client: &Client, namespaces: &[String]) -> (Vec<String>, Vec<String>) {
    let mut closed = Vec::new();
    for namespace in namespaces {
        if !may_read(client, namespace).await {
            closed.push(namespace.clone());
        }
    }
    if closed.len() == namespaces.len() {
        return (namespaces.to_vec(), Vec::new());
    }
    let open = namespaces.iter().filter(|namespace| !closed.contains(namespace)).cloned().collect();
    (open, closed)
}

async fn may_read(client: &Client, namespace: &str) -> bool {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &deployments::resource());
    let answer = api.list_metadata(&ListParams::default().limit(1)).await;
    !matches!(answer, Err(error) if crate::error::code(&error) == Some(403))
}

/// Ends when one of these namespaces can be read: its deployments need watches, and those are made at the start.
async fn until_readable(client: Client, closed: Vec<String>) {
    loop {
        tracing::warn!(
            namespaces = closed.join(" "),
            "may not be read, and are left out: are they gone, and still in watchNamespaces?"
        );
        tokio::time::sleep(CLOSED).await;
        for namespace in &closed {
            if may_read(&client, namespace).await {
                tracing::info!(namespace, "can be read now; this process begins anew");
                return;
            }
        }
    }
}

/// Has the deployments that are planned for the GPUs of nodes looked at when those change.
async fn follow_gpus(cache: Arc<Cache>, store: Store<MiniMaxM1Deployment>, changes: mpsc::Sender<Key>) {
    loop {
        cache.gpus_changed().await;
        let open = store.state().into_iter().filter(|deployment| deployment.spec.worker.memory_per_gpu.is_none());
        for deployment in open {
            let _ = changes.send(Key::of(deployment.as_ref())).await;
        }
        // Many nodes come at once.
        tokio::time::sleep(NODES).await;
    }
}
