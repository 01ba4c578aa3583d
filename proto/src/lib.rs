//! Types of the wire: `proto/proto/**.proto` says what each message means, `cargo xtask proto` writes `proto/generated`. Of its own this has the codec and one
//! message that stays bytes.
#![allow(missing_docs, clippy::all)]

mod codec;
mod logprobs;

/// `m1.worker.v1`: what routers, the operator and m1ctl ask of a worker.
pub mod worker {
    pub use crate::logprobs::TokenLogprobs;

    include!("../generated/m1.worker.v1.rs");
}

/// `m1.dispatch.v1`: token dispatch between the pods of a group.
pub mod dispatch {
    include!("../generated/m1.dispatch.v1.rs");
}
