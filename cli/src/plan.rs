//! `m1ctl plan`: the plan of a MiniMaxM1Deployment, printed. Starts nothing and, without `--diff`, needs no cluster.

use m1_arch::Bytes;
use m1_operator_plan::{Environment, Link, Plan, Runtime, runnable};
use serde_json::{Map, Value};

use crate::args::{OutputForm, PlanArgs};
use crate::deployment;
use crate::error::Failure;
use crate::output::Console;

/// Runs the command.
///
/// # Errors
/// A file that is refused, or a spec that has no plan.
pub async fn run(args: &PlanArgs, console: &Console) -> Result<(), Failure> {
    if args.diff {
        return crate::diff::run(args).await;
    }
    let (plan, remarks) = make(args)?;
    remarks.iter().for_each(|remark| console.say(remark));
    match args.output {
        OutputForm::Text => print!("{plan}"),
        OutputForm::Json => println!("{:#}", json(&plan)?),
    }
    Ok(())
}

/// The plan, and what should be said beside it: of the model it is made for, and of what an operator would refuse.
fn make(args: &PlanArgs) -> Result<(Plan, Vec<String>), Failure> {
    let checked = deployment::load(&args.file)?;
    let architecture = deployment::architecture(&args.file, &checked)?;
    let absent = deployment::folder(&checked).filter(|folder| !folder.join("config.json").is_file());
    let shape = if checked.config.is_some() { "that of spec.model.config" } else { "MiniMax-M1's" };
    let absent = absent
        .map(|folder| format!("{}: no config.json on this machine; the model's shape is taken to be {shape}", folder.display()));
    let refused = runnable(&checked, Runtime::Cluster).err().unwrap_or_default();
    let refused = refused.iter().map(|error| format!("{}: a cluster refuses {error} ({})", args.file.display(), error.reason()));
    let remarks = absent.into_iter().chain(refused).collect();
    let bandwidth = Bytes((args.link_bandwidth / 8.0) as u64);
    let environment = Environment {
        memory_per_gpu: args.gpu_memory.map(Bytes),
        link: Some(Link { round_trip: args.link_rtt, bandwidth }),
        ..Environment::new(architecture)
    };
    Ok((deployment::plan(&args.file, &checked, &environment)?, remarks))
}

/// The plan with its keys spelt as in the API: `survivesPodLoss`.
fn json(plan: &Plan) -> Result<Value, Failure> {
    serde_json::to_value(plan).map(in_camel_case).map_err(|error| Failure::new("plan", error))
}

fn in_camel_case(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (camel(&key), in_camel_case(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(in_camel_case).collect()),
        other => other,
    }
}

fn camel(key: &str) -> String {
    let mut words = key.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut text, word| {
        let mut letters = word.chars();
        text.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        text + letters.as_str()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn made(spec: &str, flags: &[&str]) -> Result<(Plan, Vec<String>), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cr.yaml");
        let text = format!(
            "apiVersion: serving.minimax-m1.dev/v1alpha1\nkind: MiniMaxM1Deployment\nmetadata: {{name: m1}}\nspec:\n{spec}"
        );
        std::fs::write(&file, text).unwrap();
        let line = ["m1ctl", "plan", "-f", file.to_str().unwrap()];
        match Cli::parse_from(line.iter().chain(flags)).command {
            Command::Plan(args) => make(&args).map_err(|failure| failure.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn plan(spec: &str, flags: &[&str]) -> Result<Plan, String> {
        made(spec, flags).map(|(plan, _)| plan)
    }

    const TWO_PODS: &str = "  model: {source: {persistentVolumeClaim: {claimName: w}}}\n  parallelism: {tensor: 8, expert: 2}\n";

    #[test]
    fn the_smallest_bf16_shape_is_planned_with_its_price() {
        let plan = plan(TWO_PODS, &["--gpu-memory", "80GB", "--link-bandwidth", "8Tbit"]).unwrap();
        let value = json(&plan).unwrap();
        assert_eq!(value["survivesPodLoss"]["survives"], false);
        assert_eq!(value["groups"][0]["pods"].as_array().unwrap().len(), 2);
        let predicted = value["predicted"]["msPerToken"].as_f64().unwrap();
        assert!((24.0..24.1).contains(&predicted), "{predicted}");
        let memory = &value["groups"][0]["pods"][0]["bytes"]["perDevice"];
        assert_eq!(memory["memory"], 80_000_000_000u64);
    }

    #[test]
    fn what_an_operator_would_refuse_is_remarked() {
        let flags = ["--gpu-memory", "80GB"];
        let (_, remarks) = made(TWO_PODS, &flags).unwrap();
        let [remark] = remarks.as_slice() else { panic!("{remarks:?}") };
        assert!(remark.contains("cr.yaml: a cluster refuses spec.parallelism.tensor: 8: "), "{remark}");
        assert!(remark.ends_with("(NotImplemented)"), "{remark}");
        let runs = "  model: {source: {persistentVolumeClaim: {claimName: w}}}\n  worker: {memoryPerGpu: \"0\"}\n";
        assert_eq!(made(runs, &[]).unwrap().1, [""; 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let error = plan(&TWO_PODS.replace("expert: 2", "expert: 1"), &["--gpu-memory", "80GB"]).unwrap_err();
        assert!(error.contains("spec.worker.memoryPerGpu: 80.0 GB per GPU is too little"), "{error}");
        assert!(error.contains("spec.model.expertQuantization: Int8"), "{error}");
    }

    #[test]
    fn keys_are_spelt_as_in_the_api() {
        assert_eq!(["survives_pod_loss", "kv", "ms_per_token"].map(camel), ["survivesPodLoss", "kv", "msPerToken"]);
    }
}
