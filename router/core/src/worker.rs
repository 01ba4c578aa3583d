//! What the router knows of one worker pod.

/// A worker's number: given when it comes, never given again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// What a worker says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// No placement yet, or nothing heard.
    #[default]
    Waiting,
    /// Reading weights.
    Loading,
    /// Weights are here, peers are not.
    Connecting,
    /// Serves.
    Ready,
    /// Takes nothing new.
    Draining,
    /// Cannot serve; its reason says why.
    Failed,
}

impl Phase {
    /// The word for logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Loading => "loading",
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// The part of a worker's status that decisions need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Its number in the group.
    pub pod: u32,
    /// What it does now.
    pub phase: Phase,
    /// The placement it has applied.
    pub epoch: u64,
    /// Sequences in its batch.
    pub running: u32,
    /// Sequences it has admitted but not started.
    pub waiting: u32,
    /// Lightning states in use.
    pub slots_used: u32,
    /// Lightning states it can hold; 0 where it does not say.
    pub slots_total: u32,
    /// KV blocks in use, reserved ones among them.
    pub kv_used: u32,
    /// KV blocks that its waiting sequences will need.
    pub kv_waiting: u32,
    /// KV blocks it has.
    pub kv_total: u32,
    /// Tokens of one KV block; 0 where it does not say: then its KV bounds nothing here.
    pub kv_block_tokens: u32,
    /// Longest sequence it takes; 0 where it does not say.
    pub max_context: u32,
}
