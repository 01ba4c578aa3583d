//! A plan as readable text: what `m1ctl plan` prints and what the goldens hold.

use std::fmt;

use crate::placement::range_words;
use crate::{Device, DeviceBytes, GroupPlan, Plan, PodPlan, Source};

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::HostPath { path } => write!(out, "hostPath {path}"),
            Source::PersistentVolumeClaim { claim_name, path } => write!(out, "persistentVolumeClaim {claim_name}/{path}"),
            Source::HuggingFace { repo, revision, .. } => write!(out, "huggingFace {repo} at {revision}"),
            Source::Image { reference } => write!(out, "image {reference}"),
            Source::Url { url } => write!(out, "url {url}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = self.groups.first().map_or(0, |group| group.pods.len());
        writeln!(out, "{}: {} as {} of {}", self.name, self.served_name, count(self.groups.len(), "group"), count(pods, "pod"))?;
        let model = &self.model;
        writeln!(
            out,
            "model      {}; {} layers x {} experts; experts {}, the rest {}; window {} tokens",
            model.source,
            model.layers,
            model.experts,
            model.expert_dtype.as_str(),
            model.dtype.as_str(),
            model.max_context,
        )?;
        self.groups.iter().try_for_each(|group| write_group(out, group, self.device))?;
        writeln!(
            out,
            "router     {} x {}, {}",
            self.router.name,
            self.router.replicas,
            count(self.router.workers.len(), "worker")
        )?;
        writeln!(out, "pod loss   {}", self.survives_pod_loss.words)?;
        match &self.predicted {
            Some(predicted) => writeln!(out, "predicted  {:.1} ms per token: {}", predicted.ms_per_token, predicted.from),
            None => writeln!(out, "predicted  nothing: no link between pods was measured"),
        }
    }
}

fn write_group(out: &mut fmt::Formatter<'_>, group: &GroupPlan, device: Device) -> fmt::Result {
    writeln!(out, "group {:<4} {}, placement epoch {}", group.index, group.name, group.epoch)?;
    group.pods.iter().try_for_each(|pod| write_pod(out, pod, device))
}

fn write_pod(out: &mut fmt::Formatter<'_>, pod: &PodPlan, device: Device) -> fmt::Result {
    let on = match device {
        Device::Gpu => count(pod.gpus as usize, "GPU"),
        Device::Cpu => "CPU".to_owned(),
    };
    let args = &pod.args;
    writeln!(out, "  {}  {on}; {}; reads {}", pod.name, range_words(&pod.holds), pod.bytes.read)?;
    write_bytes(out, &pod.bytes.per_device, device)?;
    write!(
        out,
        "    runs     {}, {} KV tokens, prefill {} tokens per step",
        count(args.slots as usize, "sequence"),
        args.kv_tokens,
        args.prefill_chunk
    )?;
    match args.threads {
        Some(threads) => writeln!(out, ", {}", count(threads as usize, "thread")),
        None => writeln!(out),
    }
}

fn write_bytes(out: &mut fmt::Formatter<'_>, bytes: &DeviceBytes, device: Device) -> fmt::Result {
    let DeviceBytes { experts, attention, kv, state, reserve, free, memory } = bytes;
    let name = match device {
        Device::Gpu => "per GPU ",
        Device::Cpu => "memory  ",
    };
    let weights = bytes.weights();
    write!(out, "    {name} weights {weights} (experts {experts} + attention {attention}), KV {kv}, state {state}")?;
    match memory {
        Some(memory) => writeln!(out, ", reserve {reserve}, free {free} of {memory}"),
        None => writeln!(out),
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
