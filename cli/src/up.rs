//! `m1ctl up`: a MiniMaxM1Deployment as processes of this machine, kept alive until a signal. Plays the operator.

mod restarts;
mod router;
mod state;
mod supervisor;

use m1_operator_plan::{Checked, Environment, Runtime};
use m1_runtime::shutdown::signal;

use crate::args::UpArgs;
use crate::deployment;
use crate::error::Failure;
use crate::local::{Limits, LocalError, LocalPlan, SHORT_GRACE, ports, process};
use crate::output::Console;
use state::StateFile;
use supervisor::{Care, Supervisor};

/// Fields that the planner lists as meaningless to a local runtime, and that this one obeys.
const OBEYED: [&str; 2] = ["spec.worker.drainSeconds", "spec.worker.restartBudget"];

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
    let listen = ports::listen(args.listen).map_err(|error| Failure::new("--listen", error))?;
    let program = process::find("m1-router").map_err(LocalError::from)?;
    let router = router::launch(program, &checked.served_name, &plan, listen);
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
            supervisor.stop(care.drain, hurry).await;
            console.say("stopped");
            Ok(())
        }
    }
}

/// The plan's pods with addresses of this machine.
fn local_plan(args: &UpArgs, checked: &Checked) -> Result<LocalPlan, Failure> {
    let folder = deployment::folder(checked).unwrap_or_default();
    let field = format!("{}: spec.model.source.hostPath.path:", args.file.display());
    let checkpoint = crate::model::open(&field, &folder)?;
    deployment::agrees(&args.file, checked, checkpoint.architecture())?;
    let plan = deployment::plan(&args.file, checked, &Environment::new(checkpoint.architecture().clone()))?;
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
    };
    let groups = plan.groups.into_iter().map(|group| group.pods.into_iter().map(|pod| pod.holds).collect()).collect();
    Ok(LocalPlan { threads: args_of_all.threads, ..LocalPlan::new(&checkpoint, groups, limits)? })
}
