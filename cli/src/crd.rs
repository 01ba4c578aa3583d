//! `m1ctl crd`: the CRDs of this version, printed or applied.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use m1_operator_api::crd_files;

use crate::args::{CrdArgs, CrdDeed};
use crate::cluster::{Cluster, refused};
use crate::error::Failure;
use crate::output::Console;

/// How long the API server may take to serve a CRD that it has accepted.
const ESTABLISHED: Duration = Duration::from_secs(30);

/// Runs the command.
///
/// # Errors
/// The API server does not answer, refuses, or does not come to serve them.
pub async fn run(args: &CrdArgs, console: &Console) -> Result<(), Failure> {
    match args.what {
        CrdDeed::Print => print(),
        CrdDeed::Apply => apply(&Cluster::connect(&args.cluster).await?, console).await,
    }
}

fn print() -> Result<(), Failure> {
    for file in crd_files() {
        let yaml = serde_saphyr::to_string(&file.object).map_err(|error| Failure::new(file.name, error))?;
        println!("---\n{}", yaml.trim_end());
    }
    Ok(())
}

async fn apply(cluster: &Cluster, console: &Console) -> Result<(), Failure> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let params = PatchParams::apply("m1ctl").force();
    for file in crd_files() {
        let name = file.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        api.patch(&name, &params, &Patch::Apply(&file.object)).await.map_err(|error| refused(&name, &error))?;
        served(&api, &name).await?;
        println!("customresourcedefinition.apiextensions.k8s.io/{name} applied");
    }
    console.flush();
    Ok(())
}

async fn served(api: &Api<CustomResourceDefinition>, name: &str) -> Result<(), Failure> {
    let end = tokio::time::Instant::now() + ESTABLISHED;
    loop {
        let crd = api.get(name).await.map_err(|error| refused(name, &error))?;
        let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
            return Ok(());
        }
        if tokio::time::Instant::now() > end {
            return Err(Failure::new(name, format_args!("not served within {} s", ESTABLISHED.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
