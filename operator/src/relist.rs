//! What a watch means: a list that is whole says what is gone, whatever broke in between. One reading of the watcher's events for
//! everything that follows a watch.

use std::collections::HashSet;
use std::hash::Hash;

use kube::runtime::watcher::Event;

/// What an event came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Change<T, P> {
    /// Nothing yet.
    Nothing,
    /// An object is so.
    Is(P, T),
    /// These are gone. `listed`: everything there is has been named.
    Gone {
        /// Their places.
        gone: Vec<P>,
        /// Whether a list ended.
        listed: bool,
    },
}

/// What one watch has named so far.
#[derive(Debug)]
pub struct Relist<P> {
    known: HashSet<P>,
    fresh: HashSet<P>,
}

impl<P> Default for Relist<P> {
    fn default() -> Self {
        Self { known: HashSet::new(), fresh: HashSet::new() }
    }
}

impl<P: Clone + Eq + Hash> Relist<P> {
    /// Takes an event. `place` says what tells objects apart; one without a place does not count.
    pub fn take<T>(&mut self, event: Event<T>, place: impl Fn(&T) -> Option<P>) -> Change<T, P> {
        let lists = matches!(event, Event::InitApply(_));
        match event {
            Event::Init => {
                self.fresh.clear();
                Change::Nothing
            }
            Event::InitApply(object) | Event::Apply(object) => match place(&object) {
                Some(place) => {
                    if lists {
                        self.fresh.insert(place.clone());
                    }
                    self.known.insert(place.clone());
                    Change::Is(place, object)
                }
                None => Change::Nothing,
            },
            Event::InitDone => {
                let gone: Vec<P> = self.known.difference(&self.fresh).cloned().collect();
                self.known = std::mem::take(&mut self.fresh);
                Change::Gone { gone, listed: true }
            }
            Event::Delete(object) => {
                let gone: Vec<P> = place(&object).into_iter().collect();
                gone.iter().for_each(|place| {
                    self.known.remove(place);
                });
                Change::Gone { gone, listed: false }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(relist: &mut Relist<char>, event: Event<&str>) -> Change<String, char> {
        let named = |object: &String| object.chars().next();
        relist.take(
            match event {
                Event::Init => Event::Init,
                Event::InitDone => Event::InitDone,
                Event::InitApply(text) => Event::InitApply(text.to_owned()),
                Event::Apply(text) => Event::Apply(text.to_owned()),
                Event::Delete(text) => Event::Delete(text.to_owned()),
            },
            named,
        )
    }

    fn gone(places: &[char], listed: bool) -> Change<String, char> {
        Change::Gone { gone: places.to_vec(), listed }
    }

    #[test]
    fn a_new_list_says_what_is_gone() {
        let mut relist = Relist::default();
        take(&mut relist, Event::Init);
        assert_eq!(take(&mut relist, Event::InitApply("a1")), Change::Is('a', "a1".into()));
        take(&mut relist, Event::InitApply("b1"));
        assert_eq!(take(&mut relist, Event::InitDone), gone(&[], true));
        take(&mut relist, Event::Apply("c1"));
        // The stream broke: what happened meanwhile is only in the new list.
        take(&mut relist, Event::Init);
        take(&mut relist, Event::InitApply("a2"));
        take(&mut relist, Event::InitApply("c1"));
        assert_eq!(take(&mut relist, Event::InitDone), gone(&['b'], true));
        assert_eq!(take(&mut relist, Event::Delete("a2")), gone(&['a'], false));
        // A list that broke off says nothing about what is gone.
        take(&mut relist, Event::Init);
        take(&mut relist, Event::Init);
        take(&mut relist, Event::InitApply("c1"));
        assert_eq!(take(&mut relist, Event::InitDone), gone(&[], true));
        assert_eq!(take(&mut relist, Event::Apply("")), Change::Nothing, "it has no place");
        take(&mut relist, Event::Apply("d1"));
        take(&mut relist, Event::Delete("d1"));
        take(&mut relist, Event::Delete("c1"));
        assert!(relist.known.is_empty() && relist.fresh.is_empty(), "what is gone takes no room");
    }
}
