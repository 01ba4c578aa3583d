//! A component of an image that is not a crate: a Debian package or a wheel that libraries came out of.

/// A component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// SPDX expression; none where the package's own files say it.
    pub licence: Option<&'static str>,
    /// Package URL, the identity that scanners look up.
    pub purl: String,
}

/// Percent-encodes a version for a package URL.
pub fn encoded(version: &str) -> String {
    version.replace('%', "%25").replace('+', "%2B").replace(':', "%3A")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_encoded() {
        assert_eq!(encoded("1:2.36-9+deb12u14~x"), "1%3A2.36-9%2Bdeb12u14~x");
    }
}
