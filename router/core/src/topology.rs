//! Which replica groups there should be: a plain value, whole every time. Who writes it (a command line, an API server) is not known here; what it
//! changes is [`crate::Balancer::apply`]'s matter.

use std::collections::BTreeMap;
use std::sync::Arc;

use m1_arch::ExpertSet;

/// What a group's pods were made from. A request stays within one as long as that is open; groups that nobody revises all have the empty one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(Arc<str>);

impl Revision {
    /// Any text names one.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self::new("")
    }
}

/// One pod of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// `HOST:PORT`. The pod's identity within its group: what answers there may be restarted or replaced and is still the same worker.
    pub address: Arc<str>,
    /// The experts it should hold; none where nobody says.
    pub holds: Option<Arc<ExpertSet>>,
    /// Who answers there, as members of a deployment name each other; none where nobody says. At the same address somebody else is another worker.
    pub member: Option<Arc<str>>,
}

/// One replica group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSpec {
    /// What its pods were made from.
    pub revision: Revision,
    /// Whether it gets new requests; what runs there may end in any case.
    pub open: bool,
    /// Whether its pods are spoken to encrypted.
    pub encrypted: bool,
    /// In the order of their numbers.
    pub pods: Vec<PodSpec>,
}

/// All replica groups, by a key that stays while a group lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The groups.
    pub groups: BTreeMap<String, GroupSpec>,
}

impl Topology {
    /// Open groups that never change, from the addresses of each one's pods.
    pub fn fixed(groups: &[Vec<String>]) -> Self {
        let pod = |address: &String| PodSpec { address: address.as_str().into(), holds: None, member: None };
        let group = |pods: &Vec<String>| GroupSpec { open: true, pods: pods.iter().map(pod).collect(), ..GroupSpec::default() };
        // Padded, so that ten comes after nine.
        let keyed = groups.iter().enumerate().map(|(index, pods)| (format!("{index:04}"), group(pods)));
        Self { groups: keyed.collect() }
    }
}
