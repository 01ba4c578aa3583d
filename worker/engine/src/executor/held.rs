//! [`Held`]: the experts that an executor holds, whatever an expert is to it.

use m1_arch::{ExpertId, ExpertSet, LayerId};

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

    /// Lets go of what `wanted` lacks, then loads what is missing. After an error [`Held::set`] says how far it came.
    ///
    /// # Errors
    /// The first of `load`.
    pub fn update<E>(&mut self, wanted: &ExpertSet, mut load: impl FnMut(LayerId, ExpertId) -> Result<T, E>) -> Result<(), E> {
        for (layer, expert) in self.set.difference(wanted).iter() {
            let place = self.place(layer, expert);
            self.places[place] = None;
            self.set.remove(layer, expert);
        }
        for (layer, expert) in wanted.difference(&self.set).iter() {
            let place = self.place(layer, expert);
            self.places[place] = Some(load(layer, expert)?);
            self.set.insert(layer, expert);
        }
        Ok(())
    }

    fn place(&self, layer: LayerId, expert: ExpertId) -> usize {
        layer.index() * self.set.experts() + expert.index()
    }
}
