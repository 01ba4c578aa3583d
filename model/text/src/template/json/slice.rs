//! A part of a request's JSON as a template's value. It was read before, so it is JSON, no object in it has a field twice, and no number is too large.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::json;
use crate::template::context::{Marking, of_json};

/// An array or object.
#[derive(Clone)]
pub(in crate::template) struct Slice {
    all: Arc<str>,
    range: Range<usize>,
    marking: Marking,
}

impl fmt::Debug for Slice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&json::cut(self.text(), 64))
    }
}

impl Slice {
    pub(in crate::template) fn new(all: Arc<str>, marking: Marking) -> Self {
        Self { range: 0..all.len(), all, marking }
    }

    pub(in crate::template) fn marking(&self) -> &Marking {
        &self.marking
    }

    /// The slice of a part of this one's text.
    pub(in crate::template) fn inner(&self, part: &RawValue) -> Self {
        let start = (part.get().as_ptr() as usize).saturating_sub(self.all.as_ptr() as usize);
        Self { all: Arc::clone(&self.all), range: start..start + part.get().len(), marking: self.marking.clone() }
    }

    fn text(&self) -> &str {
        self.all.get(self.range.clone()).unwrap_or("")
    }

    fn is_list(&self) -> bool {
        self.text().starts_with('[')
    }

    /// What `pick` finds first among the elements, or among the fields by name.
    fn find<T>(&self, mut pick: impl FnMut(usize, &str, &RawValue) -> Option<T>) -> Option<T> {
        let mut found = None;
        if self.is_list() {
            let one = |place, item: &RawValue| {
                found = pick(place, "", item);
                if found.is_some() { Err(()) } else { Ok(()) }
            };
            let _ended = json::each(self.text(), one);
            return found;
        }
        let fields = Fields {
            take: |place, name: &str, value: &RawValue| {
                found = pick(place, name, value);
                found.is_none()
            },
        };
        let _ended = serde_json::Deserializer::from_str(self.text()).deserialize_map(fields);
        found
    }

    fn count(&self) -> usize {
        let mut count = 0;
        self.find(|_, _, _| {
            count += 1;
            None::<()>
        });
        count
    }

    fn shown(&self, name: &str) -> Value {
        self.marking.apply(name).map_or_else(|| Value::from(name), Value::from)
    }
}

impl Object for Slice {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.is_list() { ObjectRepr::Seq } else { ObjectRepr::Map }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        if self.is_list() {
            let at = key.as_usize()?;
            return self.find(|place, _, item| (place == at).then(|| of_json(item, self)))?;
        }
        let key = key.as_str()?;
        let is_it = |name: &str| name == key || self.marking.apply(name).is_some_and(|marked| marked == key);
        self.find(|_, name, value| is_it(name).then(|| of_json(value, self)))?
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        if self.is_list() {
            return Enumerator::Iter(Box::new(Elements { slice: Arc::clone(self), at: self.range.start + 1, left: self.count() }));
        }
        let mut names = Vec::new();
        self.find(|_, name, _| {
            names.push(self.shown(name));
            None::<()>
        });
        Enumerator::Values(names)
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.count())
    }
}

/// The elements of a list, each read when it is asked for.
struct Elements {
    slice: Arc<Slice>,
    /// Where the next one, or a comma before it, stands.
    at: usize,
    left: usize,
}

impl Iterator for Elements {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.left = self.left.checked_sub(1)?;
        let rest = self.slice.all.get(self.at..)?;
        let skipped = rest.len() - rest.trim_start_matches([',', ' ', '\n', '\r', '\t']).len();
        let mut values = serde_json::Deserializer::from_str(rest.get(skipped..)?).into_iter::<&RawValue>();
        let value = values.next()?.ok()?;
        self.at += skipped + value.get().len();
        of_json(value, &self.slice)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

struct Fields<F> {
    take: F,
}

impl<'de, F: FnMut(usize, &str, &'de RawValue) -> bool> Visitor<'de> for Fields<F> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut place = 0;
        while let Some(name) = map.next_key_seed(Name)? {
            if !(self.take)(place, &name, map.next_value()?) {
                return Err(A::Error::custom("ended"));
            }
            place += 1;
        }
        Ok(())
    }
}

struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = std::borrow::Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(Keep)
    }
}

struct Keep;

impl<'de> Visitor<'de> for Keep {
    type Value = std::borrow::Cow<'de, str>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a field's name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(name.into())
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(name.to_owned().into())
    }
}

/// Written token by token as it is read: no tree.
impl Serialize for Slice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let copy = Copy { serializer, marking: &self.marking };
        copy.deserialize(&mut serde_json::Deserializer::from_str(self.text())).map_err(S::Error::custom)
    }
}

/// Whatever is read is written.
struct Copy<'m, S> {
    serializer: S,
    marking: &'m Marking,
}

impl<'de, S: Serializer> DeserializeSeed<'de> for Copy<'_, S> {
    type Value = S::Ok;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Ok, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Serializer> Visitor<'de> for Copy<'_, S> {
    type Value = S::Ok;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<S::Ok, E> {
        self.serializer.serialize_unit().map_err(E::custom)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<S::Ok, E> {
        self.serializer.serialize_bool(value).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<S::Ok, E> {
        self.serializer.serialize_u64(value).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<S::Ok, E> {
        self.serializer.serialize_i64(value).map_err(E::custom)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<S::Ok, E> {
        self.serializer.serialize_f64(value).map_err(E::custom)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<S::Ok, E> {
        let marked = self.marking.apply(text);
        self.serializer.serialize_str(marked.as_deref().unwrap_or(text)).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<S::Ok, A::Error> {
        let mut out = self.serializer.serialize_seq(None).map_err(A::Error::custom)?;
        while items.next_element_seed(Element { out: &mut out, marking: self.marking })?.is_some() {}
        out.end().map_err(A::Error::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<S::Ok, A::Error> {
        let mut out = self.serializer.serialize_map(None).map_err(A::Error::custom)?;
        while let Some(name) = map.next_key_seed(Name)? {
            let marked = self.marking.apply(&name);
            out.serialize_key(marked.as_deref().unwrap_or(&name)).map_err(A::Error::custom)?;
            map.next_value_seed(FieldValue { out: &mut out, marking: self.marking })?;
        }
        out.end().map_err(A::Error::custom)
    }
}

struct Element<'a, 'm, Q> {
    out: &'a mut Q,
    marking: &'m Marking,
}

impl<'de, Q: SerializeSeq> DeserializeSeed<'de> for Element<'_, '_, Q> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let once = Once(RefCell::new(Some(deserializer)), self.marking);
        self.out.serialize_element(&once).map_err(D::Error::custom)
    }
}

struct FieldValue<'a, 'm, M> {
    out: &'a mut M,
    marking: &'m Marking,
}

impl<'de, M: SerializeMap> DeserializeSeed<'de> for FieldValue<'_, '_, M> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let once = Once(RefCell::new(Some(deserializer)), self.marking);
        self.out.serialize_value(&once).map_err(D::Error::custom)
    }
}

/// A value that is read while it is written, which happens once.
struct Once<'m, D>(RefCell<Option<D>>, &'m Marking);

impl<'de, D: Deserializer<'de>> Serialize for Once<'_, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let deserializer = self.0.borrow_mut().take().ok_or_else(|| S::Error::custom("written twice"))?;
        Copy { serializer, marking: self.1 }.deserialize(deserializer).map_err(S::Error::custom)
    }
}
