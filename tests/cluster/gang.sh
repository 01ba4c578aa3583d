#!/bin/bash
# Gang scheduling, as a cluster's owner installs it: the scheduler of scheduler-plugins
# as a second one beside the cluster's own, from its own chart, and the CRD of its
# PodGroup. Pods with schedulerName scheduler-plugins-scheduler are its.
#
#   gang.sh up     builds it if it must, and waits until it is ready
#   gang.sh down   removes it, and every PodGroup
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
need_cluster
export KUBECONFIG=$conf/admin.kubeconfig PATH=$M1_CLUSTER_BUILD/bin:$PATH
space=scheduler-plugins

# Coscheduling alone: the chart's other plugins want CRDs of their own. It sorts the
# queue, so the chart turns PrioritySort off. The chart's permitWaitingTimeSeconds is
# 10; a PodGroup that says scheduleTimeoutSeconds overrides it.
settings=(
    --set "plugins.enabled={Coscheduling}"
    --set scheduler.image=cluster.test/scheduler-plugins:0.31.8 --set "scheduler.command={/kube-scheduler}"
    --set scheduler.resources.requests.cpu=10m --set scheduler.resources.requests.memory=64Mi
    --set controller.replicaCount=0 # not built: see build.sh
)

case ${1:-} in
up)
    extra=$("$here/build.sh" gang)
    "$here/load.sh" "$extra/images/scheduler-plugins.tar"
    kubectl apply -f "$extra/crd.yaml" >/dev/null
    kubectl wait --for=condition=Established crd/podgroups.scheduling.x-k8s.io --timeout=30s >/dev/null
    helm upgrade --install scheduler-plugins "$extra/chart" -n "$space" --create-namespace "${settings[@]}" \
        --wait --timeout 90s >/dev/null
    say "scheduler-plugins-scheduler is ready"
    ;;
down)
    helm uninstall scheduler-plugins -n "$space" --ignore-not-found --wait >/dev/null
    kubectl delete namespace "$space" --ignore-not-found --timeout=60s >/dev/null
    kubectl delete crd podgroups.scheduling.x-k8s.io --ignore-not-found --timeout=30s >/dev/null
    ;;
*) die "usage: gang.sh up | down" ;;
esac
