//! The input of `forward`: `{"name": [ids], ..}`, checked against the vocabulary before anything is started.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// One sequence to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its key.
    pub name: String,
    /// Its tokens: at least one, all in the vocabulary.
    pub ids: Vec<u32>,
}

/// Reads and checks the text of the input file. Prompts keep the file's order.
///
/// # Errors
/// Everything that is wrong, one line each; a line about a prompt begins with its key.
pub fn parse(text: &str, vocab: usize) -> Result<Vec<Prompt>, Vec<String>> {
    let Entries(entries) = serde_json::from_str(text).map_err(|error| vec![error.to_string()])?;
    if entries.is_empty() {
        return Err(vec!["the object is empty, allowed: at least one \"name\": [ids]".to_owned()]);
    }
    let mut prompts: Vec<Prompt> = Vec::with_capacity(entries.len());
    let mut errors = Vec::new();
    for (name, value) in entries {
        if prompts.iter().any(|prompt| prompt.name == name) {
            errors.push(format!("{name:?}: given twice"));
            continue;
        }
        match ids(&name, &value, vocab) {
            Ok(ids) => prompts.push(Prompt { name, ids }),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(prompts) } else { Err(errors) }
}

fn ids(name: &str, value: &Value, vocab: usize) -> Result<Vec<u32>, String> {
    let list = value.as_array().ok_or_else(|| format!("{name:?}: {value} given, allowed: a list of token ids"))?;
    if list.is_empty() {
        return Err(format!("{name:?}: the list is empty, allowed: at least one token id"));
    }
    let last = vocab.saturating_sub(1);
    let id = |(at, value): (usize, &Value)| {
        let id = value.as_u64().filter(|&id| id <= last as u64).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("{name:?}[{at}]: {value} given, allowed: whole numbers from 0 to {last}"))
    };
    list.iter().enumerate().map(id).collect()
}

/// The pairs of a JSON object as they stand in the file, a key that comes twice included.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object {\"name\": [ids], ..}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        parse(text, 2112).unwrap_err()
    }

    #[test]
    fn prompts_keep_their_order() {
        let prompts = parse(r#"{"b": [1, 2111], "a": [0]}"#, 2112).unwrap();
        assert_eq!(prompts[0], Prompt { name: "b".into(), ids: vec![1, 2111] });
        assert_eq!(prompts[1].name, "a");
    }

    #[test]
    fn an_empty_list_names_its_key() {
        assert_eq!(errors(r#"{"x": []}"#), ["\"x\": the list is empty, allowed: at least one token id"]);
    }

    #[test]
    fn ids_outside_the_vocabulary_name_their_key() {
        for bad in ["2112", "-1", "1.5", "\"7\"", "null", "1e3", "99999999999999999999"] {
            let errors = errors(&format!(r#"{{"ok": [1], "x": [3, {bad}]}}"#));
            assert_eq!(errors.len(), 1, "{bad}");
            assert!(errors[0].starts_with("\"x\"[1]: "), "{errors:?}");
            assert!(errors[0].ends_with(" given, allowed: whole numbers from 0 to 2111"), "{errors:?}");
        }
    }

    #[test]
    fn every_error_is_told() {
        assert_eq!(errors(r#"{"a": [], "b": 3, "c": [1], "c": [2]}"#).len(), 3);
        assert_eq!(errors(r#"{"c": [1], "c": [2]}"#), ["\"c\": given twice"]);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(errors("[1]")[0].contains("an object"), "{:?}", errors("[1]"));
        assert!(errors("{}")[0].starts_with("the object is empty"));
        assert!(errors("{\"a\": [1]} x")[0].contains("trailing"));
        assert!(!errors("").is_empty());
    }
}
