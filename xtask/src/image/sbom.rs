//! The list of an image's components as SPDX 2.3 JSON: programs with their digests, the crates inside them, system packages
//! and wheels. The same components give the same document.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::crates::{Crate, Id};
use super::digest::Digest;
use super::oci;
use super::package::{Package, encoded};
use super::programs::Program;

const UNKNOWN: &str = "NOASSERTION";
const IMAGE: &str = "SPDXRef-Image";

/// What the document tells of.
pub struct Contents<'a> {
    /// NAME:TAG of the image.
    pub reference: &'a str,
    /// Seconds since 1970.
    pub created: u64,
    pub programs: &'a [Program],
    pub crates: &'a BTreeMap<Id, Crate>,
    pub packages: &'a [Package],
}

/// The document.
pub fn document(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let (name, tag) = contents.reference.rsplit_once(':').context("a reference without a tag")?;
    let mut packages = vec![package(IMAGE, name, tag, Some("Apache-2.0"), None)];
    packages[0]["primaryPackagePurpose"] = json!("CONTAINER");
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE)];
    for ((name, version), found) in contents.crates {
        let id = (name.clone(), version.clone());
        let purl = found.published.then(|| format!("pkg:cargo/{name}@{}", encoded(version)));
        packages.push(package(&crate_id(&id), name, version, found.licence.as_deref(), purl.as_deref()));
        relations.extend(found.uses.iter().map(|used| relation(&crate_id(&id), "DEPENDS_ON", &crate_id(used))));
    }
    for program in contents.programs {
        let digest = Digest::of(&program.bytes);
        let id = identifier(&["program", program.name]);
        let mut entry = package(&id, program.name, tag, Some("Apache-2.0"), None);
        entry["primaryPackagePurpose"] = json!("APPLICATION");
        entry["packageFileName"] = json!(format!("./usr/local/bin/{}", program.name));
        entry["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": digest.hex}]);
        packages.push(entry);
        relations.push(relation(IMAGE, "CONTAINS", &id));
        let own = contents.crates.keys().filter(|(name, _)| name == program.name);
        relations.extend(own.map(|own| relation(&id, "GENERATED_FROM", &crate_id(own))));
    }
    for found in contents.packages {
        let id = identifier(&["package", &found.name, &found.version]);
        packages.push(package(&id, &found.name, &found.version, found.licence, Some(&found.purl)));
        relations.push(relation(IMAGE, "CONTAINS", &id));
    }
    let hash = Digest::of(&serde_json::to_vec(&packages).context("render the components")?).hex;
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": contents.reference,
        // Has to be another one for other components; no page is there.
        "documentNamespace": format!("https://{name}/spdx/{tag}/{hash}"),
        "creationInfo": {
            "created": oci::timestamp(contents.created),
            "creators": [format!("Tool: minimax-m1-xtask-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relations,
    });
    let mut bytes = serde_json::to_vec_pretty(&document).context("render the list of components")?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn package(id: &str, name: &str, version: &str, licence: Option<&str>, purl: Option<&str>) -> Value {
    let mut package = json!({
        "SPDXID": id,
        "name": name,
        "versionInfo": version,
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": licence.unwrap_or(UNKNOWN),
        "copyrightText": UNKNOWN,
    });
    if let Some(purl) = purl {
        package["externalRefs"] =
            json!([{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}]);
    }
    package
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

fn crate_id((name, version): &Id) -> String {
    identifier(&["crate", name, version])
}

/// SPDX allows letters, digits, dots and hyphens. crates.io takes `_` and `-` for the same, so that no two crates meet.
fn identifier(parts: &[&str]) -> String {
    let text = parts.join("-").replace(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-', "-");
    format!("SPDXRef-{text}")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;

    fn example(bytes: &[u8]) -> Value {
        let id = |name: &str| (name.to_owned(), "1.0.0+x".to_owned());
        let krate = |published, uses: &[&str]| Crate {
            licence: Some("MIT".into()),
            published,
            uses: uses.iter().map(|name| id(name)).collect::<BTreeSet<_>>(),
        };
        let crates = BTreeMap::from([(id("m1-a"), krate(false, &["b_c"])), (id("b_c"), krate(true, &[]))]);
        let programs = [Program { name: "m1-a", bytes: bytes.to_vec(), libraries: vec![] }];
        let libc = Package { name: "libc6".into(), version: "2.36+1".into(), licence: None, purl: "pkg:deb/debian/libc6@2".into() };
        let contents = Contents { reference: "x.dev/a:1", created: 0, programs: &programs, crates: &crates, packages: &[libc] };
        let first = document(&contents).unwrap();
        assert_eq!(first, document(&contents).unwrap());
        serde_json::from_slice(&first).unwrap()
    }

    #[test]
    fn relations_join_packages_that_are_there() {
        let document = example(b"x");
        let packages = document["packages"].as_array().unwrap();
        let ids: HashSet<&str> = packages.iter().map(|package| package["SPDXID"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), packages.len());
        let relations = document["relationships"].as_array().unwrap();
        for relation in relations {
            let (from, to) = (relation["spdxElementId"].as_str().unwrap(), relation["relatedSpdxElement"].as_str().unwrap());
            assert!(ids.contains(to) && (from == "SPDXRef-DOCUMENT" || ids.contains(from)), "{from} {to}");
        }
        let kinds: Vec<&str> = relations.iter().map(|relation| relation["relationshipType"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["DESCRIBES", "DEPENDS_ON", "CONTAINS", "GENERATED_FROM", "CONTAINS"]);
        assert!(ids.contains("SPDXRef-crate-b-c-1.0.0-x"));
    }

    #[test]
    fn published_crates_have_a_purl_and_own_ones_do_not() {
        let document = example(b"x");
        let purl = |name: &str| {
            let packages = document["packages"].as_array().unwrap();
            let found = packages.iter().find(|package| package["name"] == name).unwrap();
            found["externalRefs"][0]["referenceLocator"].as_str().map(str::to_owned)
        };
        assert_eq!(purl("b_c").as_deref(), Some("pkg:cargo/b_c@1.0.0%2Bx"));
        assert_eq!(purl("m1-a"), None);
        assert_eq!(purl("libc6").as_deref(), Some("pkg:deb/debian/libc6@2"));
    }

    #[test]
    fn another_program_is_another_document() {
        assert_eq!(example(b"x"), example(b"x"));
        assert_ne!(example(b"x")["documentNamespace"], example(b"y")["documentNamespace"]);
    }
}
