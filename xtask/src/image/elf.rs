//! What the dynamic loader reads of a 64-bit little-endian ELF file: its interpreter, the libraries it needs and where they
//! are looked for. Nothing is trusted: a file that says nonsense is an error. Layout: System V ABI, chapters 4 and 5.

use anyhow::{Context, Result, bail};

const MAGIC: &[u8] = b"\x7fELF";
/// Class 64-bit, data little-endian.
const CLASS_AND_ORDER: &[u8] = &[2, 1];

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
/// Bytes of an entry of the dynamic section: tag and value.
const DYNAMIC_ENTRY: u64 = 16;

/// What the loader reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elf {
    /// The loader that an executable asks for.
    pub interpreter: Option<String>,
    /// Names of the libraries it needs.
    pub needed: Vec<String>,
    /// Its own name.
    pub soname: Option<String>,
    /// Folders to search for its libraries and for those of the libraries it loads, `$ORIGIN` and all.
    pub rpath: Option<String>,
    /// Folders to search for its own libraries only.
    pub runpath: Option<String>,
}

#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Reads an ELF file; none when `bytes` are not one.
pub fn parse(bytes: &[u8]) -> Result<Option<Elf>> {
    if !bytes.starts_with(MAGIC) {
        return Ok(None);
    }
    if bytes.get(4..6) != Some(CLASS_AND_ORDER) {
        bail!("an ELF file that is not 64-bit little-endian");
    }
    let segments = segments(bytes)?;
    let mut elf = Elf::default();
    for segment in &segments {
        match segment.kind {
            PT_INTERP => elf.interpreter = Some(string(bytes, segment.offset)?),
            PT_DYNAMIC => dynamic(bytes, *segment, &segments, &mut elf)?,
            _ => {}
        }
    }
    Ok(Some(elf))
}

fn segments(bytes: &[u8]) -> Result<Vec<Segment>> {
    let table = u64_at(bytes, 32)?;
    let (length, count) = (u16_at(bytes, 54)?, u16_at(bytes, 56)?);
    (0..u64::from(count))
        .map(|index| {
            let at = table.checked_add(index * u64::from(length)).context("program headers beyond the file")?;
            Ok(Segment {
                kind: u32_at(bytes, at)?,
                offset: u64_at(bytes, at.saturating_add(8))?,
                address: u64_at(bytes, at.saturating_add(16))?,
                size: u64_at(bytes, at.saturating_add(32))?,
            })
        })
        .collect()
}

fn dynamic(bytes: &[u8], segment: Segment, segments: &[Segment], elf: &mut Elf) -> Result<()> {
    let mut entries = Vec::new();
    for index in 0..segment.size / DYNAMIC_ENTRY {
        let at = segment.offset.saturating_add(index * DYNAMIC_ENTRY);
        let (tag, value) = (u64_at(bytes, at)?, u64_at(bytes, at.saturating_add(8))?);
        if tag == DT_NULL {
            break;
        }
        entries.push((tag, value));
    }
    let Some((_, address)) = entries.iter().find(|(tag, _)| *tag == DT_STRTAB) else { return Ok(()) };
    let strings = offset_of(*address, segments)?;
    for (tag, value) in entries {
        let read = || string(bytes, strings.saturating_add(value));
        match tag {
            DT_NEEDED => elf.needed.push(read()?),
            DT_SONAME => elf.soname = Some(read()?),
            DT_RPATH => elf.rpath = Some(read()?),
            DT_RUNPATH => elf.runpath = Some(read()?),
            _ => {}
        }
    }
    Ok(())
}

/// Where in the file lies what is loaded at `address`.
fn offset_of(address: u64, segments: &[Segment]) -> Result<u64> {
    let holder = segments.iter().filter(|segment| segment.kind == PT_LOAD).find_map(|segment| {
        let within = address.checked_sub(segment.address)?;
        (within < segment.size).then(|| segment.offset.saturating_add(within))
    });
    holder.with_context(|| format!("no segment holds address {address:#x}"))
}

fn string(bytes: &[u8], at: u64) -> Result<String> {
    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).context("a string beyond the file")?;
    let end = rest.iter().position(|byte| *byte == 0).context("a string without an end")?;
    Ok(std::str::from_utf8(&rest[..end]).context("a string that is not UTF-8")?.to_owned())
}

fn array<const N: usize>(bytes: &[u8], at: u64) -> Result<[u8; N]> {
    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).context("a field beyond the file")?;
    rest.first_chunk::<N>().copied().context("a field beyond the file")
}

fn u16_at(bytes: &[u8], at: u64) -> Result<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: u64) -> Result<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: u64) -> Result<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Makes ELF files for the tests of this folder.
#[cfg(test)]
pub mod fake {
    use super::*;

    /// Loaded this much above its place in the file, so that an offset taken for an address is seen.
    const BASE: u64 = 0x1000;
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;

    /// The file that `parse` reads as `elf`.
    pub fn write(elf: &Elf) -> Vec<u8> {
        let count = 2 + usize::from(elf.interpreter.is_some());
        let strings_at = HEADER + count * PROGRAM_HEADER;
        let mut strings = vec![0u8];
        let mut add = |text: &str| {
            let at = strings.len() as u64;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let mut entries = vec![(DT_STRTAB, BASE + strings_at as u64)];
        entries.extend(elf.needed.iter().map(|name| (DT_NEEDED, add(name))));
        for (tag, text) in [(DT_SONAME, &elf.soname), (DT_RPATH, &elf.rpath), (DT_RUNPATH, &elf.runpath)] {
            entries.extend(text.as_ref().map(|text| (tag, add(text))));
        }
        entries.push((DT_NULL, 0));
        let interpreter = elf.interpreter.as_ref().map(|text| strings_at as u64 + add(text));
        let dynamic_at = (strings_at + strings.len()) as u64;
        let dynamic_size = entries.len() as u64 * DYNAMIC_ENTRY;
        let mut segments = vec![(PT_LOAD, 0, dynamic_at + dynamic_size), (PT_DYNAMIC, dynamic_at, dynamic_size)];
        segments.extend(interpreter.map(|at| (PT_INTERP, at, 1)));

        let mut bytes = vec![0u8; HEADER];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..6].copy_from_slice(CLASS_AND_ORDER);
        bytes[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        bytes[54..56].copy_from_slice(&(PROGRAM_HEADER as u16).to_le_bytes());
        bytes[56..58].copy_from_slice(&(count as u16).to_le_bytes());
        for (kind, offset, size) in segments {
            bytes.extend_from_slice(&u64::from(kind).to_le_bytes());
            for field in [offset, BASE + offset, 0, size, size, 1] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&strings);
        for (tag, value) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Elf {
        Elf {
            interpreter: Some("/lib64/ld.so".into()),
            needed: vec!["libc.so.6".into(), "libm.so.6".into()],
            soname: Some("libx.so".into()),
            rpath: Some("$ORIGIN".into()),
            runpath: Some("/a:/b".into()),
        }
    }

    #[test]
    fn the_dynamic_section_is_read() {
        assert_eq!(parse(&fake::write(&example())).unwrap(), Some(example()));
        assert_eq!(parse(&fake::write(&Elf::default())).unwrap(), Some(Elf::default()));
    }

    #[test]
    fn other_files_are_not_elf() {
        assert_eq!(parse(b"#!/bin/sh\n").unwrap(), None);
        assert_eq!(parse(b"").unwrap(), None);
    }

    #[test]
    fn a_cut_file_is_an_error() {
        let bytes = fake::write(&example());
        for length in 4..bytes.len() - DYNAMIC_ENTRY as usize {
            assert!(parse(&bytes[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn this_very_program_is_read() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(parse(&bytes).unwrap().unwrap().needed.contains(&"libc.so.6".to_owned()));
    }
}
