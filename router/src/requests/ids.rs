//! Token ids of a JSON array, straight into numbers.

use std::fmt;

use m1_text::grow;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::ApiError;

use super::Context;
use super::echo::{broken, invalid};

/// Elements between two looks at whether the client is still there: a fraction of a millisecond.
const LOOK: usize = 16_384;

/// Ids of an array: the first ones, as far as they are kept, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// At most as many as were asked for.
    pub kept: Vec<u32>,
    /// All of them.
    pub count: usize,
}

/// Reads ids below the vocabulary's size; keeps the first `most`.
///
/// # Errors
/// An element that is no such id, by its place; nobody waits any more.
pub fn read(ctx: &Context<'_>, path: &str, array: &RawValue, most: usize) -> Result<Ids, ApiError> {
    let mut place = 0;
    let list = List { ctx, most, vocab: ctx.model.vocab, place: &mut place };
    let mut deserializer = serde_json::Deserializer::from_str(array.get());
    match list.deserialize(&mut deserializer) {
        Ok(ids) => Ok(ids),
        Err(_) if ctx.check().is_err() => Err(ApiError::Cancelled),
        Err(error) => match element(array, place) {
            Some(given) => {
                let allowed = format!("a token id from 0 to {}", ctx.model.vocab.saturating_sub(1));
                Err(invalid(format!("{path}[{place}]"), given, &allowed))
            }
            None => Err(broken(path, &error)),
        },
    }
}

/// The element at `place`.
pub fn element(array: &RawValue, place: usize) -> Option<&RawValue> {
    let mut found = None;
    let nth = Nth { place, found: &mut found };
    // It stops with an error once it has found the element.
    let _stopped = serde_json::Deserializer::from_str(array.get()).deserialize_seq(nth);
    found
}

struct List<'a> {
    ctx: &'a Context<'a>,
    most: usize,
    vocab: u32,
    place: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Ids;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Ids, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = Ids;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an array of token ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Ids, A::Error> {
        let mut ids = Ids::default();
        while let Some(Id(id)) = items.next_element()? {
            if id >= self.vocab {
                return Err(A::Error::custom("beyond the vocabulary"));
            }
            if ids.count < self.most {
                grow(&mut ids.kept, 1, usize::MAX);
                ids.kept.push(id);
            }
            ids.count += 1;
            *self.place = ids.count;
            if ids.count.is_multiple_of(LOOK) && self.ctx.check().is_err() {
                return Err(A::Error::custom("nobody waits"));
            }
        }
        Ok(ids)
    }
}

struct Id(u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u32(Number).map(Self)
    }
}

struct Number;

impl Visitor<'_> for Number {
    type Value = u32;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a token id")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<u32, E> {
        u32::try_from(id).map_err(E::custom)
    }
}

struct Nth<'a, 'de> {
    place: usize,
    found: &'a mut Option<&'de RawValue>,
}

impl<'de> Visitor<'de> for Nth<'_, 'de> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for _ in 0..self.place {
            if items.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        *self.found = items.next_element::<&RawValue>()?;
        Err(A::Error::custom("found"))
    }
}
