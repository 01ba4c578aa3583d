//! The connections of a pod, as a worker makes them.

use std::sync::Arc;

use m1_worker::device::DeviceHandle;
use m1_worker::status::SharedStatus;
use m1_worker::transport::Dialer;
use tokio_util::task::TaskTracker;

use super::service::identity;

/// Pod 1's: plain, in no deployment, driven by no device.
pub fn dialer(events: DeviceHandle, status: Arc<SharedStatus>) -> Dialer {
    Dialer {
        identity: identity(1),
        events,
        status,
        tasks: TaskTracker::new(),
        generations: Arc::default(),
        tls: None,
        device: None,
        member: None,
    }
}
