//! SHA-256 digests, computed while bytes pass by.

use std::fmt::Write as _;
use std::io::{Read, Result, Write};

use sha2::{Digest as _, Sha256};

/// What identifies a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// SHA-256, in lower-case hexadecimal digits.
    pub hex: String,
    /// Bytes.
    pub size: u64,
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::new(Sha256::new_with_prefix(bytes), bytes.len() as u64)
    }

    fn new(hash: Sha256, size: u64) -> Self {
        let mut hex = String::with_capacity(64);
        for byte in hash.finalize() {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Self { hex, size }
    }

    /// `sha256:HEX`.
    pub fn reference(&self) -> String {
        format!("sha256:{}", self.hex)
    }
}

/// A reader or writer that hashes what passes.
pub struct Hashed<T> {
    inner: T,
    hash: Sha256,
    size: u64,
}

impl<T> Hashed<T> {
    /// Nothing passed yet.
    pub fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    /// The inner one, and the digest of all that passed.
    pub fn finish(self) -> (T, Digest) {
        (self.inner, Digest::new(self.hash, self.size))
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = self.inner.write(bytes)?;
        self.passed(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let read = self.inner.read(into)?;
        self.passed(&into[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_digest_is_sha_256() {
        assert_eq!(Digest::of(b"abc").reference(), format!("sha256:{ABC}"));
    }

    #[test]
    fn what_passes_is_hashed_and_counted() {
        let mut writer = Hashed::new(Vec::new());
        writer.write_all(b"ab").unwrap();
        writer.write_all(b"c").unwrap();
        assert_eq!(writer.finish(), (b"abc".to_vec(), Digest { hex: ABC.to_owned(), size: 3 }));
        let mut reader = Hashed::new(&b"abc"[..]);
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        assert_eq!(reader.finish().1, Digest::of(b"abc"));
    }
}
