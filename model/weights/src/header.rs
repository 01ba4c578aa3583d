//! The header of a safetensors file: 8 bytes of length (little-endian), then JSON that gives every tensor its dtype, shape
//! and byte range, then the data. Ranges must tile the data: no overlap, no hole, nothing after the last.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::error::WeightsError;

/// Largest header that is read, the same as the reference library's. A shard of M1 has a few kB; a larger number is
/// a file of another kind.
const LARGEST_HEADER: u64 = 100_000_000;
/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16, 2 bytes.
    BF16,
    /// IEEE half, 2 bytes.
    F16,
    /// IEEE single, 4 bytes.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::BF16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// The word that safetensors uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Dtype::BF16 => "BF16",
            Dtype::F16 => "F16",
            Dtype::F32 => "F32",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        [Dtype::BF16, Dtype::F16, Dtype::F32].into_iter().find(|dtype| dtype.as_str() == word)
    }
}

/// What a header says of one tensor. `begin` counts from the start of the file; the length follows from dtype and shape.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub begin: usize,
}

/// All tensors of one file, checked against the file's length.
pub(crate) type Header = HashMap<String, Stored>;

/// Reads the header of a mapped file. `path` is for messages.
pub(crate) fn read(path: &Path, file: &[u8]) -> Result<Header, WeightsError> {
    let (json, start) = json_part(path, file)?;
    let entries: Entries =
        serde_json::from_slice(json).map_err(|source| wrong(path, format!("its header is not valid: {source}")))?;
    let mut entries = entries.0;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    check_tiling(path, &entries, start, file.len())?;
    let mut header = Header::with_capacity(entries.len());
    for (name, entry) in entries {
        check_size(path, &name, &entry)?;
        let begin = start + entry.data_offsets[0] as usize;
        let stored = Stored { dtype: entry.dtype, shape: entry.shape, begin };
        if header.insert(name.clone(), stored).is_some() {
            return Err(wrong(path, format!("it lists {name} twice")));
        }
    }
    Ok(header)
}

/// Where the header ends, by the first bytes of a file; none where they are no header's.
pub(crate) fn end(front: &[u8]) -> Option<u64> {
    let length = u64::from_le_bytes(*front.first_chunk::<LENGTH_BYTES>()?);
    (length <= LARGEST_HEADER).then_some(LENGTH_BYTES as u64 + length)
}

/// The JSON, and where the data starts.
fn json_part<'a>(path: &Path, file: &'a [u8]) -> Result<(&'a [u8], usize), WeightsError> {
    let given = file.len() as u64;
    let too_short = |wanted: u64| WeightsError::Truncated { path: path.to_owned(), wanted, given };
    let (length, rest) = file.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| too_short(LENGTH_BYTES as u64))?;
    let length = u64::from_le_bytes(*length);
    if length > LARGEST_HEADER {
        return Err(wrong(path, format!("its header would be {length} bytes long: at most {LARGEST_HEADER} are allowed")));
    }
    let json = rest.get(..length as usize).ok_or_else(|| too_short(LENGTH_BYTES as u64 + length))?;
    Ok((json, LENGTH_BYTES + length as usize))
}

/// That ranges, sorted, follow each other from the first byte of the data to the last of the file.
fn check_tiling(path: &Path, entries: &[(String, Entry)], start: usize, length: usize) -> Result<(), WeightsError> {
    let data = (length - start) as u64;
    let mut free = 0;
    for (name, entry) in entries {
        let [begin, end] = entry.data_offsets;
        let fault = |what: &str| range(path, name, entry, what.to_owned());
        if begin > end {
            return Err(fault("end before they begin"));
        }
        if begin < free {
            return Err(fault("overlap those of another tensor"));
        }
        if begin > free {
            return Err(fault("leave a hole before them"));
        }
        free = end;
    }
    if free > data {
        let wanted = free.saturating_add(start as u64);
        return Err(WeightsError::Truncated { path: path.to_owned(), wanted, given: length as u64 });
    }
    if free < data {
        return Err(wrong(path, format!("{} bytes follow the last tensor", data - free)));
    }
    Ok(())
}

/// That a tensor's range is as long as its shape and dtype say.
fn check_size(path: &Path, name: &str, entry: &Entry) -> Result<(), WeightsError> {
    let Some(element) = element_size(&entry.dtype) else { return Ok(()) };
    let elements = entry.shape.iter().try_fold(1u64, |all, size| all.checked_mul(*size as u64));
    let wanted = elements.and_then(|elements| elements.checked_mul(element));
    let [begin, end] = entry.data_offsets;
    if wanted != Some(end - begin) {
        let shape = &entry.shape;
        return Err(range(path, name, entry, format!("do not hold {shape:?} of {}", entry.dtype)));
    }
    Ok(())
}

/// Bytes of one element of the dtypes that safetensors knows; others are refused when a tensor of the network has one.
fn element_size(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" | "C64" => Some(8),
        _ => None,
    }
}

fn wrong(path: &Path, what: String) -> WeightsError {
    WeightsError::Header { path: path.to_owned(), what }
}

fn range(path: &Path, name: &str, entry: &Entry, what: String) -> WeightsError {
    let [begin, end] = entry.data_offsets;
    WeightsError::Range { path: path.to_owned(), tensor: name.to_owned(), begin, end, what }
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The entries in the file's order, so that one that comes twice is seen; `__metadata__` is left out.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<serde::de::IgnoredAny>()?;
            } else {
                let entry = map.next_value().map_err(|source| A::Error::custom(format!("{name}: {source}")))?;
                entries.push((name, entry));
            }
        }
        Ok(Entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.as_bytes());
        file.extend(vec![7; data]);
        file
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}"#;

    fn refused(json: &str, data: usize) -> WeightsError {
        read(Path::new("x.safetensors"), &file(json, data)).unwrap_err()
    }

    #[test]
    fn ranges_are_counted_from_the_start_of_the_file() {
        let header = read(Path::new("x"), &file(TWO, 16)).unwrap();
        assert_eq!(header.len(), 2);
        assert_eq!((header["a"].begin, header["b"].begin), (8 + TWO.len(), 8 + TWO.len() + 12));
        assert_eq!((header["a"].dtype.as_str(), header["a"].shape.as_slice()), ("BF16", [2, 3].as_slice()));
    }

    #[test]
    fn faults_of_a_header_are_told_apart() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let two = |offsets: &str| TWO.replace("[12,16]", offsets);
        for (json, data, reason) in [
            (TWO.to_owned(), 15, "ShardTruncated"),
            (TWO.to_owned(), 17, "ShardHeaderInvalid"),
            (two("[8,12]"), 12, "TensorRangeInvalid"),
            (two("[16,20]"), 20, "TensorRangeInvalid"),
            (two("[16,12]"), 16, "TensorRangeInvalid"),
            (two("[12,18446744073709551615]"), 16, "ShardTruncated"),
            (one("F32", "[3]", "[0,8]"), 8, "TensorRangeInvalid"),
            (one("F32", "[4611686018427387904,4]", "[0,0]"), 0, "TensorRangeInvalid"),
            (one("F32", "[-1]", "[0,4]"), 4, "ShardHeaderInvalid"),
            (one("F32", "[1]", "[0]"), 4, "ShardHeaderInvalid"),
            (r#"{"a":{"dtype":"F32","shape":[1]}}"#.to_owned(), 4, "ShardHeaderInvalid"),
            ("[]".to_owned(), 0, "ShardHeaderInvalid"),
            ("{".to_owned(), 0, "ShardHeaderInvalid"),
            (TWO.replace("\"b\"", "\"a\""), 16, "ShardHeaderInvalid"),
        ] {
            let error = refused(&json, data);
            assert_eq!(error.reason(), reason, "{json} with {data} bytes: {error}");
            assert!(error.to_string().contains("x.safetensors"), "{error}");
        }
    }

    #[test]
    fn a_length_that_no_header_has_is_refused_unread() {
        for (length, reason) in
            [(LARGEST_HEADER + 1, "ShardHeaderInvalid"), (u64::MAX, "ShardHeaderInvalid"), (9, "ShardTruncated")]
        {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.push(b'{');
            assert_eq!(read(Path::new("x"), &bytes).unwrap_err().reason(), reason, "{length}");
        }
        assert_eq!(read(Path::new("x"), &[]).unwrap_err().reason(), "ShardTruncated");
    }

    proptest! {
        #[test]
        fn damage_never_leads_outside_the_file(at in 0usize..200, byte: u8, keep in 0usize..240) {
            let mut bytes = file(TWO, 16);
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(keep.max(at % length));
            if let Ok(header) = read(Path::new("x"), &bytes) {
                for stored in header.values() {
                    let elements: usize = stored.shape.iter().product();
                    let size = element_size(&stored.dtype).unwrap_or(0) as usize;
                    prop_assert!(stored.begin + elements * size <= bytes.len());
                }
            }
        }
    }
}
