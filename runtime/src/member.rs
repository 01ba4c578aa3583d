//! Which member of which deployment a call is meant for. An address proves nothing: it may have passed to another deployment's pod, or to another
//! process of this machine. So every call says whom it means, and whoever is not meant refuses it by name, with TLS or without.

use std::fmt;
use std::str::FromStr;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// The metadata key.
pub const MEANT_FOR: &str = "m1-meant-for";
/// The word of a refusal, as metadata `m1-reason`.
pub const WRONG_MEMBER: &str = "WrongMember";
/// Longest text form: names of Kubernetes are at most 253 characters, a uid has 36.
const LONGEST: usize = 640;

/// Not the text of a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("given {given:?}, allowed: NAMESPACE/NAME/UID/GROUP/POD")]
pub struct MemberError {
    given: String,
}

/// One worker pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// The deployment it belongs to.
    pub deployment: Deployment,
    /// Its replica group's name.
    pub group: String,
    /// Its number in the group.
    pub pod: u16,
}

/// One deployment in one of its lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Deployment {
    /// Its namespace; `local` for the processes of one machine.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Never given twice.
    pub uid: String,
}

impl Deployment {
    /// The pod of a group of it.
    pub fn member(&self, group: impl Into<String>, pod: u16) -> Member {
        Member { deployment: self.clone(), group: group.into(), pod }
    }
}

impl Member {
    /// Who answers in this member's place, as a status names itself; none where it is this member.
    pub fn instead<'a>(&self, answers: &'a str) -> Option<&'a str> {
        match answers {
            "" => Some("a worker that was not told whose it is"),
            answers => Some(answers).filter(|answers| *answers != self.to_string()),
        }
    }
}

/// Whether a call was refused because it was meant for somebody else.
pub fn is_for_another(refusal: &Status) -> bool {
    refusal.metadata().get("m1-reason").is_some_and(|reason| reason == WRONG_MEMBER)
}

impl fmt::Display for Deployment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}/{}", self.namespace, self.name, self.uid)
    }
}

impl FromStr for Deployment {
    type Err = MemberError;

    fn from_str(text: &str) -> Result<Self, MemberError> {
        match parts(text)?.as_slice() {
            [namespace, name, uid] => Ok(Self { namespace: namespace.clone(), name: name.clone(), uid: uid.clone() }),
            _ => Err(wrong(text)),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}/{}", self.deployment, self.group, self.pod)
    }
}

impl FromStr for Member {
    type Err = MemberError;

    fn from_str(text: &str) -> Result<Self, MemberError> {
        match parts(text)?.as_slice() {
            [namespace, name, uid, group, pod] => {
                let deployment = Deployment { namespace: namespace.clone(), name: name.clone(), uid: uid.clone() };
                Ok(deployment.member(group.clone(), pod.parse().map_err(|_| wrong(text))?))
            }
            _ => Err(wrong(text)),
        }
    }
}

/// The parts of a text, none of them empty, all of characters that a header may hold.
fn parts(text: &str) -> Result<Vec<String>, MemberError> {
    let parts: Vec<String> = text.split('/').map(str::to_owned).collect();
    let fits =
        text.len() <= LONGEST && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic()));
    if fits { Ok(parts) } else { Err(wrong(text)) }
}

fn wrong(text: &str) -> MemberError {
    MemberError { given: text.chars().take(120).collect() }
}

/// Says with every call of a client whom it means.
#[derive(Clone, Debug, Default)]
pub struct MeantFor(Option<MetadataValue<Ascii>>);

impl MeantFor {
    /// Means a member; nobody in particular where none is known.
    pub fn new(member: Option<&Member>) -> Self {
        Self(member.and_then(|member| member.to_string().parse().ok()))
    }
}

impl Interceptor for MeantFor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(member) = &self.0 {
            request.metadata_mut().insert(MEANT_FOR, member.clone());
        }
        Ok(request)
    }
}

/// Refuses calls that mean somebody else. Calls that mean nobody in particular pass where they only look or ask; so do all where this process was not
/// told who it is.
#[derive(Clone, Debug, Default)]
pub struct Guard(Option<Member>);

impl Guard {
    /// The guard of a member.
    pub fn new(own: Option<Member>) -> Self {
        Self(own)
    }

    /// Holds a call's metadata against who this is.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` with `m1-reason: WrongMember`, naming both.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let (Some(own), Some(meant)) = (&self.0, metadata.get(MEANT_FOR)) else { return Ok(()) };
        let meant = meant.to_str().unwrap_or("what is no text");
        if meant.parse().as_ref() == Ok(own) {
            return Ok(());
        }
        let meant: String = meant.chars().take(LONGEST).collect();
        Err(refusal(format!("the call is meant for {meant}; this is {own}")))
    }

    /// Holds the metadata of a call that changes something against who this is: it has to say whom it means.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn demand(&self, metadata: &MetadataMap) -> Result<(), Status> {
        match &self.0 {
            Some(own) if !metadata.contains_key(MEANT_FOR) => {
                Err(refusal(format!("the call does not say for whom it is meant ({MEANT_FOR}); this is {own}")))
            }
            _ => self.check(metadata),
        }
    }
}

fn refusal(words: String) -> Status {
    let mut status = Status::failed_precondition(words);
    status.metadata_mut().insert("m1-reason", MetadataValue::from_static(WRONG_MEMBER));
    status
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.check(request.metadata())?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        "models/m1/0b54-11/m1-0/3".parse().unwrap()
    }

    fn meant(text: &str) -> Result<(), String> {
        let mut metadata = MetadataMap::new();
        metadata.insert(MEANT_FOR, text.parse().unwrap());
        Guard::new(Some(member())).check(&metadata).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_member_reads_as_it_is_written() {
        assert_eq!((member().deployment.to_string().as_str(), member().pod), ("models/m1/0b54-11", 3));
        assert_eq!(member().to_string().parse(), Ok(member()));
        for bad in ["", "a/b/c/d", "a/b/c/d/e", "a/b/c/d/65536", "a//c/d/1", "a/b/c/d/1/2", "a b/b/c/d/1", "é/b/c/d/1"] {
            assert!(bad.parse::<Member>().is_err(), "{bad}");
        }
        let long = format!("{}/b/c/d/1", "a".repeat(700));
        assert!(long.parse::<Member>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn who_answers_instead_is_named() {
        assert_eq!(member().instead("models/m1/0b54-11/m1-0/3"), None);
        assert_eq!(member().instead(""), Some("a worker that was not told whose it is"));
        assert_eq!(member().instead("models/m1/0b54-12/m1-0/3"), Some("models/m1/0b54-12/m1-0/3"));
        let refused = Guard::new(Some(member()))
            .call(MeantFor::new(Some(&member().deployment.member("other", 3))).call(Request::new(())).unwrap());
        assert!(is_for_another(&refused.unwrap_err()));
        assert!(!is_for_another(&Status::failed_precondition("the placement is older")));
    }

    #[test]
    fn who_is_not_meant_refuses_by_name() {
        assert_eq!(meant("models/m1/0b54-11/m1-0/3"), Ok(()));
        for other in
            ["models/m1/0b54-12/m1-0/3", "models/m2/0b54-11/m1-0/3", "models/m1/0b54-11/m1-1/3", "models/m1/0b54-11/m1-0/2", "x"]
        {
            assert_eq!(meant(other), Err(format!("the call is meant for {other}; this is models/m1/0b54-11/m1-0/3")));
        }
    }

    #[test]
    fn calls_that_mean_nobody_may_look() {
        let own = Guard::new(Some(member()));
        assert!(own.check(&MetadataMap::new()).is_ok());
        assert_eq!(
            own.demand(&MetadataMap::new()).unwrap_err().message(),
            "the call does not say for whom it is meant (m1-meant-for); this is models/m1/0b54-11/m1-0/3"
        );
        assert!(Guard::default().demand(&MetadataMap::new()).is_ok(), "who knows no name believes");
        let request = MeantFor::new(Some(&member())).call(Request::new(())).unwrap();
        assert!(Guard::default().check(request.metadata()).is_ok());
        assert!(Guard::new(Some(member())).check(request.metadata()).is_ok());
        assert!(MeantFor::default().call(Request::new(())).unwrap().metadata().is_empty());
    }
}
