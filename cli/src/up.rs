//! `m1ctl up`: a MiniMaxM1Deployment as processes of this machine, kept alive until a signal. Plays the operator.

mod restarts;
mod router;
mod state;
mod supervisor;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use m1_arch::Bytes;
use m1_operator_plan::{Checked, Environment, Plan, Runtime};
use m1_runtime::shutdown::signal;
use m1_text::{ChatTemplate, Tokenizer};

use crate::args::UpArgs;
use crate::deployment;
use crate::error::Failure;
use crate::local::{Limits, LocalError, LocalPlan, SHORT_GRACE, chain, ports, process};
use crate::output::Console;
use state::StateFile;
use supervisor::{Care, Supervisor};

/// Fields that the planner lists as meaningless to a local runtime, and that this one obeys.
const OBEYED: [&str; 2] = ["spec.worker.drainSeconds", "spec.worker.restartBudget"];

/// Beyond the drain, before SIGKILL: what was cut at its end still says so.
const BEYOND_DRAIN: Duration = Duration::from_secs(5);

/// Runs the command until a signal or until something fails for good.
///
/// # Errors
/// A CR that is refused, a process that does not start, or one that fails for good. Nothing is left running.
pub async fn run(args: &UpArgs, console: &Console) -> Result<(), Failure> {
    let checked = deployment::load(&args.file)?;
    m1_operator_plan::runnable(&checked, Runtime::Local).map_err(|errors| deployment::refused(&args.file, &errors))?;
    for field in m1_operator_plan::unused(&checked, Runtime::Local).into_iter().filter(|field| !OBEYED.contains(field)) {
        console.say(format_args!("{}: {field}: means nothing to processes on this machine", args.file.display()));
    }
    let plan = local_plan(args, &checked)?;
    openable(&args.file, &plan.model)?;
    let socket = ports::listen(args.listen).map_err(|error| Failure::new("--listen", error))?;
    let listen = socket.address();
    let program = process::find("m1-router").map_err(LocalError::from)?;
    let router = router::launch(program, &checked.served_name, &plan, socket);
    let state = args.state_dir.as_deref().map(StateFile::new).transpose()?;
    let care = Care::of(&checked.spec().worker);

    let stop = signal();
    let mut supervisor = Supervisor::start(&care, plan, (router, listen), state, console.clone())?;
    tokio::select! {
        error = supervisor.run() => {
            supervisor.stop(SHORT_GRACE, signal()).await;
            Err(error)
        }
        _ = stop => {
            // Taken before anything else is done, so that a second signal is not missed.
            let hurry = signal();
            console.say("draining; Ctrl-C again to kill");
            supervisor.stop(care.drain + BEYOND_DRAIN, hurry).await;
            console.say("stopped");
            Ok(())
        }
    }
}

/// Refuses pods that together need more memory than this machine has.
fn fits_machine(file: &Path, plan: &Plan) -> Result<(), Failure> {
    let pods = plan.groups.iter().flat_map(|group| &group.pods);
    let needed = pods.fold(Bytes(0), |sum, pod| sum + pod.bytes.total);
    let machine = rustix::system::sysinfo();
    let memory = Bytes(machine.totalram * u64::from(machine.mem_unit));
    if needed <= memory {
        return Ok(());
    }
    let why = format_args!("its pods need {needed} of weights, KV and states, this machine has {memory} of memory").to_string();
    Err(Failure::new(format_args!("{}: spec.parallelism", file.display()), why))
}

/// Refuses a model that the router could not open, before anything is started.
fn openable(file: &Path, model: &Path) -> Result<(), Failure> {
    let failed = |error: &dyn Error| Failure::new(format_args!("{}: {}", file.display(), model.display()), chain(error));
    let tokenizer = Tokenizer::open(model).map_err(|error| failed(&error))?;
    ChatTemplate::open(model, &tokenizer).map(drop).map_err(|error| failed(&error))
}

/// The plan's pods with addresses of this machine.
fn local_plan(args: &UpArgs, checked: &Checked) -> Result<LocalPlan, Failure> {
    let folder = deployment::folder(checked).unwrap_or_default();
    let field = format!("{}: spec.model.source.hostPath.path:", args.file.display());
    let checkpoint = crate::model::open(&field, &folder)?;
    deployment::agrees(&args.file, checked, checkpoint.architecture())?;
    let plan = deployment::plan(&args.file, checked, &Environment::new(checkpoint.architecture().clone()))?;
    fits_machine(&args.file, &plan)?;
    let first = plan.groups.first().and_then(|group| group.pods.first());
    let Some(args_of_all) = first.map(|pod| pod.args) else {
        return Err(Failure::new(args.file.display(), "spec.replicas: 0: nothing runs"));
    };
    let limits = Limits {
        slots: args_of_all.slots,
        kv_tokens: u32::try_from(args_of_all.kv_tokens).unwrap_or(u32::MAX),
        max_context: args_of_all.max_context,
        prefill_chunk: args_of_all.prefill_chunk,
        expert_wait: checked.spec().experts.loss.wait_seconds,
        drain_seconds: checked.spec().worker.drain_seconds,
    };
    let groups = plan.groups.into_iter().map(|group| group.pods.into_iter().map(|pod| pod.holds).collect()).collect();
    let plan = LocalPlan::new(&checkpoint, checked.name.as_str(), groups, limits).map_err(LocalError::from)?;
    Ok(LocalPlan { threads: args_of_all.threads, ..plan })
}
