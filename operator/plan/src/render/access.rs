//! Who the pods are and what they may ask the API server. Workers ask nothing; routers read ExpertPlacements.

use m1_operator_api::GROUP;
use serde_json::json;

use super::{ROUTER, Scene, WORKER};
use crate::{Kind, Object};

/// Accounts, and the routers' right to watch ExpertPlacements of their namespace.
pub fn objects(scene: &Scene<'_>) -> Vec<Object> {
    let (worker, router) = (scene.checked.name.worker(), scene.checked.name.router());
    vec![
        scene.object(Kind::ServiceAccount, &worker, WORKER, json!({"automountServiceAccountToken": false})),
        scene.object(Kind::ServiceAccount, &router, ROUTER, json!({})),
        scene.object(
            Kind::Role,
            &router,
            ROUTER,
            json!({"rules": [{"apiGroups": [GROUP], "resources": ["expertplacements"], "verbs": ["get", "list", "watch"]}]}),
        ),
        scene.object(
            Kind::RoleBinding,
            &router,
            ROUTER,
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": router},
                "subjects": [{"kind": "ServiceAccount", "name": router, "namespace": scene.namespace}],
            }),
        ),
    ]
}
