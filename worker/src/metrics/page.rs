//! One page of metrics while it is being made: families with their samples, and their text in Prometheus' format. Values are
//! those of a moment; a counter's was counted elsewhere.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use prometheus::{CounterVec, GaugeVec, Opts, Registry, TextEncoder};

/// Name, help and label names.
#[derive(Debug, Clone, Copy)]
pub struct Family(pub &'static str, pub &'static str, pub &'static [&'static str]);

impl Family {
    fn opts(&self) -> Opts {
        Opts::new(self.0, self.1)
    }
}

/// A page. Families may be added to piece by piece.
#[derive(Debug, Default)]
pub struct Page {
    gauges: BTreeMap<&'static str, GaugeVec>,
    counters: BTreeMap<&'static str, CounterVec>,
}

impl Page {
    /// Adds a gauge without labels.
    pub fn gauge(&mut self, family: Family, value: f64) -> Result<(), prometheus::Error> {
        self.gauges(family, [([], value)])
    }

    /// Adds a counter without labels.
    pub fn counter(&mut self, family: Family, value: f64) -> Result<(), prometheus::Error> {
        self.counters(family, [([], value)])
    }

    /// Adds samples of a gauge, each with its labels' values.
    pub fn gauges<'a, const N: usize>(
        &mut self,
        family: Family,
        samples: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) -> Result<(), prometheus::Error> {
        let present = match self.gauges.entry(family.0) {
            Entry::Occupied(present) => present.into_mut(),
            Entry::Vacant(place) => place.insert(GaugeVec::new(family.opts(), family.2)?),
        };
        for (labels, value) in samples {
            present.get_metric_with_label_values(&labels)?.set(value);
        }
        Ok(())
    }

    /// Adds samples of a counter, each with its labels' values.
    pub fn counters<'a, const N: usize>(
        &mut self,
        family: Family,
        samples: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) -> Result<(), prometheus::Error> {
        let present = match self.counters.entry(family.0) {
            Entry::Occupied(present) => present.into_mut(),
            Entry::Vacant(place) => place.insert(CounterVec::new(family.opts(), family.2)?),
        };
        for (labels, value) in samples {
            present.get_metric_with_label_values(&labels)?.inc_by(value);
        }
        Ok(())
    }

    /// The page as text, in the order of names and labels.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let registry = Registry::new();
        for gauge in self.gauges.values() {
            registry.register(Box::new(gauge.clone()))?;
        }
        for counter in self.counters.values() {
            registry.register(Box::new(counter.clone()))?;
        }
        let mut text = String::new();
        TextEncoder::new().encode_utf8(&registry.gather(), &mut text)?;
        Ok(text)
    }
}
