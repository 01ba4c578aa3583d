//! JSON that stays where it is: fields of an object and elements of an array as slices of the text, so that reading a long text takes no tree.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A text of at most `most` characters; what is left out is said.
#[must_use]
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}..", text.get(..end).unwrap_or("")),
        None => text.to_owned(),
    }
}

/// A field and its JSON.
pub type Field<'a> = (&'static str, &'a RawValue);

/// The `known` fields of an object, of a doubled one the last; others are skipped, however long or deep.
///
/// # Errors
/// It is no object, or no JSON.
pub fn fields<'a>(object: &'a str, known: &'static [&'static str]) -> Result<Vec<Field<'a>>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(object);
    let fields = deserializer.deserialize_map(Known(known))?;
    deserializer.end()?;
    Ok(fields)
}

/// The text of a JSON string, in place where it has no escapes; none where `value` is no string.
///
/// # Errors
/// An escape that is no character.
pub fn text(value: &RawValue) -> Result<Option<Cow<'_, str>>, serde_json::Error> {
    if !value.get().starts_with('"') {
        return Ok(None);
    }
    serde_json::Deserializer::from_str(value.get()).deserialize_str(Text).map(Some)
}

/// Gives every element of an array, with its place, to `take`, which may end it.
///
/// # Errors
/// It is no array, or no JSON; inside, `take`'s own.
pub fn each<'a, E>(
    array: &'a str,
    take: impl FnMut(usize, &'a RawValue) -> Result<(), E>,
) -> Result<Result<(), E>, serde_json::Error> {
    let mut failed = None;
    let read = serde_json::Deserializer::from_str(array).deserialize_seq(Each { take, failed: &mut failed });
    match failed {
        Some(error) => Ok(Err(error)),
        None => read.map(Ok),
    }
}

/// Gives every text of `value`, keys too, to `take`. Tells whether an object in it has a field twice.
///
/// # Errors
/// It is no JSON, is nested too deep, or holds a number that is none.
pub(crate) fn survey(value: &str, take: &mut dyn FnMut(&str)) -> Result<bool, serde_json::Error> {
    let mut doubled = false;
    Survey { take, doubled: &mut doubled }.deserialize(&mut serde_json::Deserializer::from_str(value))?;
    Ok(doubled)
}

struct Text;

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

struct Known(&'static [&'static str]);

impl<'de> Visitor<'de> for Known {
    type Value = Vec<Field<'de>>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields: Self::Value = Vec::new();
        while let Some(name) = map.next_key_seed(Key(self.0))? {
            let Some(name) = name else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value::<&RawValue>()?;
            match fields.iter_mut().find(|(known, _)| *known == name) {
                Some(field) => field.1 = value,
                None => fields.push((name, value)),
            }
        }
        Ok(fields)
    }
}

/// A field's name, where it is known.
struct Key(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static str>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|known| **known == name).copied())
    }
}

struct Each<'e, F, E> {
    take: F,
    failed: &'e mut Option<E>,
}

impl<'de, F: FnMut(usize, &'de RawValue) -> Result<(), E>, E> Visitor<'de> for Each<'_, F, E> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let mut place = 0;
        while let Some(item) = items.next_element::<&RawValue>()? {
            if let Err(error) = (self.take)(place, item) {
                *self.failed = Some(error);
                return Err(A::Error::custom("ended"));
            }
            place += 1;
        }
        Ok(())
    }
}

/// Keys of one object are compared by 64 bits of hash: eight bytes for each, whatever its length.
type Hashing = BuildHasherDefault<DefaultHasher>;

struct Survey<'a> {
    take: &'a mut dyn FnMut(&str),
    doubled: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for Survey<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Survey<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        (self.take)(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Survey { take: &mut *self.take, doubled: &mut *self.doubled })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen: HashSet<u64, Hashing> = HashSet::default();
        while let Some(hash) = map.next_key_seed(Name { take: &mut *self.take })? {
            *self.doubled |= !seen.insert(hash);
            map.next_value_seed(Survey { take: &mut *self.take, doubled: &mut *self.doubled })?;
        }
        Ok(())
    }
}

struct Name<'a> {
    take: &'a mut dyn FnMut(&str),
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = u64;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<u64, E> {
        (self.take)(name);
        Ok(Hashing::default().hash_one(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_slices_and_the_last_counts() {
        let object = r#"{"a": [1, 2], "x": [[1e999]], "\u0061": 3, "b": null}"#;
        let found: Vec<(&str, &str)> =
            fields(object, &["a", "b"]).unwrap().iter().map(|(name, value)| (*name, value.get())).collect();
        assert_eq!(found, [("a", "3"), ("b", "null")]);
        assert!(fields("{} {}", &["a"]).is_err() && fields("[]", &["a"]).is_err());
    }

    #[test]
    fn elements_are_taken_until_one_is_refused() {
        let mut seen = Vec::new();
        let ended = each("[1, \"a\", {}, 4]", |place, item| {
            seen.push(item.get());
            if place == 2 { Err("no") } else { Ok(()) }
        });
        assert_eq!((ended.unwrap(), seen), (Err("no"), vec!["1", "\"a\"", "{}"]));
        assert!(each("[1,", |_, _| Ok::<(), ()>(())).is_err());
    }

    #[test]
    fn a_survey_sees_every_text_and_doubled_fields() {
        let mut seen = String::new();
        let mut take = |text: &str| seen.push_str(text);
        assert!(!survey(r#"{"a": ["\u0062", {"c": 1.5}], "d": {"a": null}}"#, &mut take).unwrap());
        assert!(survey(r#"[{"a": 1, "\u0061": 2}]"#, &mut take).unwrap());
        assert_eq!(seen, "abcdaaa");
        assert!(survey("1e999", &mut |_| {}).is_err());
        assert!(survey(&"[".repeat(200), &mut |_| {}).is_err());
    }
}
