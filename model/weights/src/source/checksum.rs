//! Checksums of what is fetched: SHA-256 as the hub has them of large files, Git's SHA-1 of small ones.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What the source promises of a file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Promise {
    /// SHA-256 of the content, in hex.
    Sha256(String),
    /// Git's name of the content: SHA-1 over `blob LENGTH\0` and the content, in hex.
    GitBlob(String),
    /// Nothing but its length and, where there is one, its ETag.
    Nothing,
}

/// A checksum that grows with the file.
pub(super) enum Sum {
    Sha256(Sha256),
    Sha1(Sha1),
    Nothing,
}

impl Sum {
    /// The sum of nothing yet, of the kind that `promise` needs.
    pub fn new(promise: &Promise, length: u64) -> Self {
        match promise {
            Promise::Sha256(_) => Sum::Sha256(Sha256::new()),
            Promise::GitBlob(_) => Sum::Sha1(Sha1::new_with_prefix(format!("blob {length}\0"))),
            Promise::Nothing => Sum::Nothing,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Sum::Sha256(sum) => sum.update(bytes),
            Sum::Sha1(sum) => sum.update(bytes),
            Sum::Nothing => {}
        }
    }

    /// Takes in what a file holds already.
    pub fn read(&mut self, mut file: impl Read) -> io::Result<()> {
        if matches!(self, Sum::Nothing) {
            return Ok(());
        }
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block)? {
                0 => return Ok(()),
                length => self.update(&block[..length]),
            }
        }
    }

    /// The promise that was broken and what came instead: (expected, given).
    pub fn broken(self, promise: &Promise) -> Option<(String, String)> {
        let given = match self {
            Sum::Sha256(sum) => hex(&sum.finalize()),
            Sum::Sha1(sum) => hex(&sum.finalize()),
            Sum::Nothing => return None,
        };
        let (Promise::Sha256(expected) | Promise::GitBlob(expected)) = promise else { return None };
        (*expected != given).then(|| (expected.clone(), given))
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_git_and_sha256sum() {
        let check = |promise: Promise| {
            let mut sum = Sum::new(&promise, 6);
            sum.read(&b"hel"[..]).unwrap();
            sum.update(b"lo\n");
            sum.broken(&promise)
        };
        assert_eq!(check(Promise::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into())), None);
        assert_eq!(check(Promise::Sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".into())), None);
        assert_eq!(check(Promise::Sha256("00".into())).unwrap().0, "00");
        assert_eq!(check(Promise::Nothing), None);
    }
}
