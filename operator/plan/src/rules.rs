//! The rules that the CRD states as patterns and CEL, in Rust, so that a manifest is judged offline by the same words.
//! Each names the field of the CRD it mirrors; a test runs both over the same objects.

use std::time::Duration;

use m1_operator_api::{
    AuthMode, FieldError, MiniMaxM1DeploymentSpec, Model, ModelSource, Quantity, Resources, TlsMode, parse_interval,
};

/// Shortest `rebalance.interval`: balancing on less data follows noise.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(10);

/// No GPU has more, and no body is longer: sums of these stay within what the API counts in.
const MOST_MEMORY: f64 = 1e15;
/// A request has some words.
const SMALLEST_BODY: f64 = 1024.0;

/// Every rule that the spec breaks.
pub(crate) fn broken_rules(spec: &MiniMaxM1DeploymentSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    model(spec, &mut errors);
    source(&spec.model.source, &mut errors);
    cache(&spec.model, &mut errors);
    experts(spec, &mut errors);
    quantities(spec, &mut errors);
    operation(spec, &mut errors);
    errors
}

fn model(spec: &MiniMaxM1DeploymentSpec, errors: &mut Vec<FieldError>) {
    if let Some(name) = &spec.model.served_name {
        let inner = |c: char| c.is_ascii_alphanumeric() || "._/:-".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(inner) {
            errors.push(FieldError::invalid(
                "spec.model.servedName",
                name,
                "letters, digits and . _ / : -, beginning with a letter or digit",
            ));
        }
    }
}

fn source(source: &ModelSource, errors: &mut Vec<FieldError>) {
    let given = [
        source.persistent_volume_claim.as_ref().map(|_| "persistentVolumeClaim"),
        source.host_path.as_ref().map(|_| "hostPath"),
        source.hugging_face.as_ref().map(|_| "huggingFace"),
        source.image.as_ref().map(|_| "image"),
        source.url.as_ref().map(|_| "url"),
    ];
    let given: Vec<&str> = given.into_iter().flatten().collect();
    const ONE: &str = "exactly one of persistentVolumeClaim, hostPath, huggingFace, image, url";
    match given.as_slice() {
        [] => errors.push(FieldError::required("spec.model.source", ONE)),
        [_] => {}
        many => errors.push(FieldError::invalid("spec.model.source", many.join(" and "), ONE)),
    }
    let climbs = |path: &str| path.split('/').any(|part| part == "..");
    if let Some(source) = source.host_path.as_ref().filter(|source| !source.path.starts_with('/') || climbs(&source.path)) {
        errors.push(FieldError::invalid("spec.model.source.hostPath.path", &source.path, "an absolute path without '..'"));
    }
    let volume_path = source.persistent_volume_claim.as_ref().and_then(|claim| claim.path.as_ref());
    if let Some(path) = volume_path.filter(|path| path.starts_with('/') || climbs(path)) {
        let message = "relative to the volume's root, without '..'";
        errors.push(FieldError::invalid("spec.model.source.persistentVolumeClaim.path", path, message));
    }
    if let Some(source) = source.hugging_face.as_ref().filter(|source| !is_repository(&source.repo)) {
        errors.push(FieldError::invalid("spec.model.source.huggingFace.repo", &source.repo, "owner/name"));
    }
    let schemes = ["https://", "http://", "s3://", "gs://"];
    if let Some(source) = source.url.as_ref().filter(|source| !schemes.iter().any(|scheme| source.url.starts_with(scheme))) {
        errors.push(FieldError::invalid("spec.model.source.url.url", &source.url, "begins with https://, http://, s3:// or gs://"));
    }
}

fn cache(model: &Model, errors: &mut Vec<FieldError>) {
    let Some(cache) = &model.cache else { return };
    if model.source.hugging_face.is_none() && model.source.url.is_none() {
        let why = "only with source.huggingFace or source.url, which are fetched";
        errors.push(FieldError::invalid("spec.model.cache", "given", why));
    }
    let given = [cache.host_path.is_some(), cache.persistent_volume_claim.is_some(), cache.empty_dir.is_some()];
    let given = given.into_iter().filter(|given| *given).count();
    if given != 1 {
        let what = format!("{given} fields");
        errors.push(FieldError::invalid("spec.model.cache", what, "exactly one of hostPath, persistentVolumeClaim, emptyDir"));
    }
    let climbs = |path: &str| path.split('/').any(|part| part == "..");
    if let Some(source) = cache.host_path.as_ref().filter(|source| !source.path.starts_with('/') || climbs(&source.path)) {
        errors.push(FieldError::invalid("spec.model.cache.hostPath.path", &source.path, "an absolute path without '..'"));
    }
}

fn is_repository(text: &str) -> bool {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    text.split_once('/').is_some_and(|(owner, name)| word(owner) && word(name))
}

fn experts(spec: &MiniMaxM1DeploymentSpec, errors: &mut Vec<FieldError>) {
    let (copies, pods) = (spec.experts.copies, spec.parallelism.expert);
    if copies > pods {
        let message = format!("copies of one expert lie on different pods: at most parallelism.expert, {pods}");
        errors.push(FieldError::invalid("spec.experts.copies", copies, message));
    }
    let interval = &spec.experts.rebalance.interval;
    match parse_interval(interval) {
        Err(error) => errors.push(FieldError::invalid("spec.experts.rebalance.interval", interval, error.to_string())),
        Ok(length) if length < SHORTEST_INTERVAL => {
            errors.push(FieldError::invalid("spec.experts.rebalance.interval", interval, "at least 10s"));
        }
        Ok(_) => {}
    }
}

fn quantities(spec: &MiniMaxM1DeploymentSpec, errors: &mut Vec<FieldError>) {
    let mut check = |path: String, quantity: &Quantity| {
        if let Err(error) = quantity.amount() {
            errors.push(FieldError::invalid(path, quantity, error.to_string()));
        }
    };
    if let Some(body) = &spec.router.limits.max_body {
        check("spec.router.limits.maxBody".to_owned(), body);
    }
    let mut resources = |path: &str, resources: &Resources| {
        for (kind, amounts) in [("requests", &resources.requests), ("limits", &resources.limits)] {
            amounts.iter().for_each(|(name, amount)| check(format!("{path}.{kind}.{name}"), amount));
        }
    };
    resources("spec.worker.resources", &spec.worker.resources);
    resources("spec.router.resources", &spec.router.resources);
    if let Some(limit) = spec.model.cache.as_ref().and_then(|cache| cache.empty_dir.as_ref()?.size_limit.as_ref()) {
        check("spec.model.cache.emptyDir.sizeLimit".to_owned(), limit);
    }
    if let Some(memory) = &spec.worker.memory_per_gpu {
        match memory.amount() {
            Err(error) => errors.push(FieldError::invalid("spec.worker.memoryPerGpu", memory, error.to_string())),
            Ok(amount) if amount > 0.0 && amount < 1.0 => {
                errors.push(FieldError::invalid("spec.worker.memoryPerGpu", memory, "whole bytes, such as 80G; or 0 for CPUs"));
            }
            Ok(amount) if amount > MOST_MEMORY => {
                errors.push(FieldError::invalid("spec.worker.memoryPerGpu", memory, "at most 1P"))
            }
            Ok(_) => {}
        }
    }
}

fn operation(spec: &MiniMaxM1DeploymentSpec, errors: &mut Vec<FieldError>) {
    let body = spec.router.limits.max_body.as_ref();
    if let Some(body) = body.filter(|body| body.amount().is_ok_and(|bytes| !(SMALLEST_BODY..=MOST_MEMORY).contains(&bytes))) {
        errors.push(FieldError::invalid("spec.router.limits.maxBody", body, "1Ki to 1P"));
    }
    for (path, image) in [("spec.worker.image", &spec.worker.image), ("spec.router.image", &spec.router.image)] {
        if let Some(image) = image.as_ref().filter(|image| !image.chars().all(|c| c.is_ascii_graphic())) {
            errors.push(FieldError::invalid(path, image, "an image reference has no spaces and only ASCII characters"));
        }
    }
    let scaling = &spec.autoscaling;
    if scaling.min_replicas > scaling.max_replicas {
        let message = format!("at most maxReplicas, {}", scaling.max_replicas);
        errors.push(FieldError::invalid("spec.autoscaling.minReplicas", scaling.min_replicas, message));
    }
    if spec.rollout.max_unavailable + spec.rollout.max_surge == 0 {
        let why = "one of maxUnavailable and maxSurge must be more than 0";
        errors.push(FieldError::invalid("spec.rollout", "maxUnavailable 0 and maxSurge 0", why));
    }
    if spec.router.auth.mode == AuthMode::ApiKeys && spec.router.auth.secret_ref.is_none() {
        errors.push(FieldError::required("spec.router.auth.secretRef", "required with mode ApiKeys"));
    }
    if spec.tls.mode == TlsMode::CertManager && spec.tls.issuer_ref.is_none() {
        errors.push(FieldError::required("spec.tls.issuerRef", "required with mode CertManager"));
    }
}
