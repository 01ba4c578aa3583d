//! [`Held`]: the experts that an executor holds, whatever an expert is to it.

use m1_arch::{ExpertId, ExpertSet, LayerId};

/// An expert that was brought in and is not held yet.
#[derive(Debug)]
pub struct Brought<T> {
    /// Its layer.
    pub layer: LayerId,
    /// Which of the layer's it is.
    pub expert: ExpertId,
    /// Whatever an expert is.
    pub what: T,
}

/// Held experts of all layers.
#[derive(Debug)]
pub struct Held<T> {
    /// `layers * experts` places.
    places: Vec<Option<T>>,
    set: ExpertSet,
}

impl<T> Held<T> {
    /// None held.
    pub fn none(layers: usize, experts: usize) -> Self {
        Self { places: (0..layers * experts).map(|_| None).collect(), set: ExpertSet::empty(layers, experts) }
    }

    /// Which are held.
    pub fn set(&self) -> &ExpertSet {
        &self.set
    }

    /// An expert, if it is held.
    pub fn get(&self, layer: LayerId, expert: ExpertId) -> Option<&T> {
        self.places.get(self.place(layer, expert)).and_then(Option::as_ref)
    }

    /// Holds one more, or another in its place. One that the model lacks is left out.
    pub fn hold(&mut self, Brought { layer, expert, what }: Brought<T>) {
        let place = self.place(layer, expert);
        if let Some(held) = self.places.get_mut(place).filter(|_| expert.index() < self.set.experts()) {
            *held = Some(what);
            self.set.insert(layer, expert);
        }
    }

    /// Lets go of these, as far as they are held.
    pub fn let_go(&mut self, experts: &ExpertSet) {
        for (layer, expert) in self.set.intersection(experts).iter() {
            let place = self.place(layer, expert);
            self.places[place] = None;
            self.set.remove(layer, expert);
        }
    }

    fn place(&self, layer: LayerId, expert: ExpertId) -> usize {
        layer.index() * self.set.experts() + expert.index()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_and_let_go_is_said() {
        let mut held = Held::none(2, 3);
        let (layer, expert) = (LayerId(1), ExpertId(2));
        held.hold(Brought { layer, expert, what: 'a' });
        held.hold(Brought { layer, expert: ExpertId(3), what: 'b' });
        held.hold(Brought { layer: LayerId(2), expert, what: 'c' });
        assert_eq!((held.set().len(), held.get(layer, expert)), (1, Some(&'a')));
        held.let_go(&ExpertSet::full(2, 3));
        assert!(held.set().is_empty() && held.get(layer, expert).is_none());
    }
}
