//! Two pods whose checkpoints have the same shapes and other values.

use std::os::unix::fs::FileExt;

use super::changed::copy;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_with_other_values_refuse_each_other() {
    let dir = copy();
    let shard = std::fs::File::options().write(true).open(dir.path().join("model-00001-of-00002.safetensors")).unwrap();
    let end = shard.metadata().unwrap().len();
    shard.write_all_at(&[0x17], end - 1).unwrap();
    let (pod, other) = (Pod::start(dir.path(), "0", "1").await, Pod::start(&demo(), "1", "1").await);
    tell(&[&pod, &other]).await;
    for pod in [&pod, &other] {
        eventually("a refusal by name", async || {
            let status = pod.client().await.status(pb::StatusRequest::default()).await.unwrap().into_inner();
            status.message.contains("WeightsMismatch")
        })
        .await;
        assert_ne!(pod.ask("/readyz").await.0, 200);
    }
}
