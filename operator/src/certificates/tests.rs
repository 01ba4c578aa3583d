//! When a certificate is made, kept, renewed and exchanged.

use super::*;

const SUBJECT: &str = "m1.serving.svc";
const DAY: Duration = Duration::from_secs(24 * 3600);

struct Authority {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

fn authority() -> Authority {
    let (certificate, key) = sign::authority().unwrap();
    Authority { certificate, key }
}

fn found(signer: &Authority, believed: &[&Authority]) -> Found {
    let (certificate, key) = sign::certificate(&signer.key, SUBJECT).unwrap();
    let authorities = believed.iter().flat_map(|authority| authority.certificate.clone()).collect();
    Found { certificate, key, authorities, ..Found::default() }
}

fn look<'a>(found: Option<&'a Found>, authority: &'a Authority) -> Look<'a> {
    Look { found, authority: &authority.certificate, subject: SUBJECT, since: None, asked: false, now: SystemTime::now() }
}

#[test]
fn a_certificate_is_made_kept_and_renewed_a_month_before_its_end() {
    let ours = authority();
    assert_eq!(look(None, &ours).step(), Step::Issue { why: "there was none", only_newest: true });
    let found = found(&ours, &[&ours]);
    let now = SystemTime::now();
    assert_eq!(look(Some(&found), &ours).step(), Step::Keep(None));
    let later = |days: u32| Look { now: now + DAY * days, ..look(Some(&found), &ours) }.step();
    assert_eq!(later(59), Step::Keep(None));
    assert_eq!(later(61), Step::Issue { why: "the one before ends soon", only_newest: true });
    assert_eq!(later(91), Step::Issue { why: "the one that was there is of no use", only_newest: true });
}

#[test]
fn a_new_one_is_made_when_somebody_asks() {
    let ours = authority();
    let found = found(&ours, &[&ours]);
    let asked = Look { asked: true, ..look(Some(&found), &ours) };
    assert_eq!(asked.step(), Step::Issue { why: "a new one was asked for", only_newest: true });
}

#[test]
fn what_is_of_no_use_is_replaced() {
    let (ours, theirs) = (authority(), authority());
    let other_key = Found { key: theirs.key.clone(), ..found(&ours, &[&ours]) };
    let not_believed = found(&theirs, &[&ours]);
    let empty = Found::default();
    for broken in [other_key, not_believed, empty] {
        assert!(matches!(look(Some(&broken), &ours).step(), Step::Issue { only_newest: true, .. }), "{broken:?}");
    }
    let other_name = Look { subject: "m2.serving.svc", ..look(Some(&found(&ours, &[&ours])), &ours) }.step();
    assert!(matches!(other_name, Step::Issue { .. }));
}

#[test]
fn a_new_authority_is_believed_before_it_signs() {
    let (old, new) = (authority(), authority());
    let before = found(&old, &[&old]);
    assert_eq!(look(Some(&before), &new).step(), Step::Believe);
    let both = found(&old, &[&new, &old]);
    let now = SystemTime::now();
    let since = Timestamp::try_from(now).unwrap();
    let after = |seconds: u64| {
        let now = now + Duration::from_secs(seconds);
        Look { since: Some(since), now, asked: true, ..look(Some(&both), &new) }.step()
    };
    let left = match after(100) {
        Step::Keep(Some(left)) => left.as_secs(),
        other => panic!("{other:?}"),
    };
    assert!((199..=200).contains(&left), "{left}");
    assert_eq!(after(301), Step::Issue { why: "there is a new authority", only_newest: false });
    // Without a time it cannot be known who believes it.
    assert_eq!(look(Some(&both), &new).step(), Step::Believe);
    let exchanged = found(&new, &[&new, &old]);
    assert_eq!(look(Some(&exchanged), &new).step(), Step::Keep(None));
}
