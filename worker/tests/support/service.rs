//! The dispatch service of a pod, as a worker makes it.

use std::sync::Arc;

use m1_arch::Architecture;
use m1_worker::device::DeviceHandle;
use m1_worker::status::SharedStatus;
use m1_worker::transport::{DispatchService, Identity};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A pod of the demo's model.
pub fn identity(pod: u16) -> Arc<Identity> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/m1-demo/config.json")).unwrap();
    Arc::new(Identity { pod, digest: "weights".into(), values: String::new(), arch: Architecture::from_json(&text).unwrap() })
}

/// Pod 0's.
pub fn service(events: DeviceHandle, status: Arc<SharedStatus>) -> DispatchService {
    DispatchService {
        guard: Default::default(),
        identity: Some(identity(0)),
        events,
        status,
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        generations: Arc::default(),
        driven: Default::default(),
    }
}
