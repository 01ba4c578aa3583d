//! The vocabulary of conditions: types, and the one CamelCase word that says why.

use crate::words::words;

words! {
    /// Types of condition that a MiniMaxM1Deployment carries.
    ConditionType {
        /// The spec is understood, can be built, and its plan fits. A spec that is not accepted changes nothing that runs.
        Accepted,
        /// Every pod that is asked for holds its weights.
        WeightsReady,
        /// At least one group can take requests, whatever else is going on.
        Available,
        /// A rollout, a scaling or a first start is under way.
        Progressing,
        /// Everything that was asked for serves, in its newest revision.
        Ready,
        /// Something is lost or worn out and needs a look; independent of Ready.
        Degraded,
        /// The autoscaler sees its numbers and may act.
        ScalingReady,
        /// The load of the pods is even enough.
        ExpertsBalanced,
    }
}

words! {
    /// Status of a condition.
    ConditionStatus {
        /// It holds.
        True,
        /// It does not.
        False,
        /// Nobody can tell.
        Unknown,
    }
}

words! {
    /// Why a condition is what it is.
    Reason {
        /// The spec is accepted as it is.
        SpecAccepted,
        /// A field breaks a rule.
        InvalidSpec,
        /// A field asks for something this build does not run yet.
        NotImplemented,
        /// The model's config is not the one the plan was made for.
        ArchitectureMismatch,
        /// The model cannot be cut or spread as asked.
        Unsplittable,
        /// The plan does not fit the memory of the GPUs.
        InsufficientMemory,
        /// Pods wait for a node.
        Unschedulable,
        /// Pods are refused by the cluster: a quota, an admission rule.
        PodsRefused,
        /// The API server refuses an object that the operator writes.
        WriteRefused,
        /// An image cannot be had.
        ImageUnavailable,
        /// The certificates of the members cannot be made or renewed.
        CertificatesUnavailable,
        /// A container cannot be made from what the pod says.
        ContainerNotCreated,
        /// A process keeps ending.
        CrashLooping,
        /// No router answers.
        RouterUnavailable,
        /// Weights are being read.
        LoadingWeights,
        /// All weights are where they should be.
        WeightsLoaded,
        /// Weights cannot be read.
        WeightsUnavailable,
        /// Something that should pass by itself has not for ten minutes.
        Stalled,
        /// A group is starting.
        Starting,
        /// Everything serves.
        Serving,
        /// No group can take requests.
        NoGroupReady,
        /// Pods of a group are away.
        PodLost,
        /// A pod has used its restart budget.
        RestartBudgetExhausted,
        /// Experts that nobody holds.
        ExpertsUnavailable,
        /// A change is being rolled out.
        RollingOut,
        /// Nothing is lost.
        AllThere,
        /// A group would have to go and no other can take its requests.
        NoHandoverTarget,
        /// A rollout waits until it is resumed.
        RolloutPaused,
        /// The number of groups is changing.
        Scaling,
        /// The number of groups is zero.
        ScaledToZero,
        /// The autoscaler is off.
        ScalingOff,
        /// The numbers the autoscaler needs are missing.
        MetricsUnavailable,
        /// The load of the pods is even enough.
        Balanced,
        /// The load of the pods is uneven.
        Imbalanced,
        /// Experts are moving.
        Rebalancing,
    }
}
