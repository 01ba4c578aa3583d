//! From the bytes of a body to a checked [`Order`](crate::order::Order). Everything here computes: it runs beside the event loop, looks at a flag every few
//! milliseconds whether its client is still there, and takes at most six times the body's length and a megabyte.

pub mod body;
pub mod chat;
pub mod completions;
pub mod echo;
pub mod generate;
pub mod ids;
pub mod params;
pub mod text;
pub mod tokenize;
mod unserved;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::ApiError;
use crate::model::Model;
use crate::order::Limits;

/// What reading a request needs to know.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Its name, tokenizer and template.
    pub model: &'a Model,
    /// What a request may ask for.
    pub limits: Limits,
    /// Whoever sets it wants no answer any more.
    pub cancelled: &'a AtomicBool,
    /// For requests without a seed.
    pub random: &'a dyn Fn() -> u64,
}

impl Context<'_> {
    /// Ends the reading of a request that nobody waits for.
    ///
    /// # Errors
    /// [`ApiError::Cancelled`].
    pub fn check(&self) -> Result<(), ApiError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(ApiError::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
