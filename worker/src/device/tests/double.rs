//! A network of integers: every number is exact in fp32, so that what a sequence says depends on nothing but its ids, if every expert is
//! asked exactly once for every row. What it says is a hash; [`oracle`] says it without any of the machinery.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use m1_arch::{Architecture, ExpertId, ExpertSet, LayerId};
use m1_engine::*;
use m1_weights::Checkpoint;

use crate::config::Config;
use crate::device::loaded::{Boxed, LoadError};

/// Numbers stay below this, and sums of four of them are exact.
const MODULUS: u64 = 1 << 16;
/// Ids that are said.
pub const SAID: u32 = 300;

/// What a test sees of the networks of its thread, and says to them.
#[derive(Debug, Clone, Default)]
pub struct Strings {
    /// Loads stand still while this is set.
    pub loads_wait: Arc<AtomicBool>,
    /// Loads fail while this is set.
    pub loads_fail: Arc<AtomicBool>,
    /// Whatever is computed fails while this is set, as if a file of their weights had changed.
    pub weights_change: Arc<AtomicBool>,
}

thread_local! {
    static STRINGS: RefCell<Strings> = RefCell::default();
    static MOST_TOGETHER: RefCell<usize> = const { RefCell::new(0) };
}

/// The strings of this thread's test.
pub fn strings() -> Strings {
    STRINGS.with_borrow(Clone::clone)
}

/// The most requests that were served together since the last call.
pub fn most_together() -> usize {
    MOST_TOGETHER.take()
}

fn mix(a: u64, b: u64) -> u64 {
    let mut z = (a ^ b.wrapping_add(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 30)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn attended(layer: u16, x: u64) -> u64 {
    (x * 5 + u64::from(layer) * 31 + 7) % MODULUS
}

fn experts_of(arch: &Architecture, layer: u16, x: u64) -> [u16; 2] {
    let (pick, experts) = (mix(x, u64::from(layer)), arch.experts as u64);
    let first = pick % experts;
    let second = (first + 1 + (pick >> 20) % (experts - 1)) % experts;
    [first as u16, second as u16]
}

fn expert(layer: u16, expert: u16, x: u64) -> u64 {
    (x * (u64::from(expert) + 3) + u64::from(layer) * 17 + u64::from(expert)) % MODULUS
}

fn says(x: u64) -> u32 {
    1 + (mix(x, 99) % u64::from(SAID)) as u32
}

/// What a greedy sequence says, by definition.
pub fn oracle(arch: &Architecture, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let (mut seen, mut said) = (1, Vec::new());
    prompt.iter().for_each(|id| seen = mix(seen, u64::from(*id)));
    while said.len() < tokens {
        let mut x = seen % MODULUS;
        for layer in arch.layer_ids().map(|layer| layer.0) {
            let h = attended(layer, x);
            let sums: u64 = experts_of(arch, layer, h).iter().map(|e| expert(layer, *e, h)).sum();
            x = (h + sums) % MODULUS;
        }
        let id = says(x);
        seen = mix(seen, u64::from(id));
        said.push(id);
    }
    said
}

/// The network.
pub struct Double {
    arch: Architecture,
    size: CacheSize,
    held: ExpertSet,
    /// Hash of all ids that each slot has seen.
    slots: BTreeMap<SlotId, u64>,
    strings: Strings,
}

/// Rows of a step.
pub struct Rows {
    x: Vec<u64>,
    sums: Vec<u64>,
}

/// Makes a double: for [`Parts`](crate::device::Parts).
pub fn load(config: &Config, checkpoint: &Checkpoint, experts: &ExpertSet, _: Progress<'_>) -> Result<Boxed, LoadError> {
    let (arch, size) = (checkpoint.architecture().clone(), CacheSize::for_tokens(config.slots, config.kv_tokens.into()));
    Ok(Box::new(Inline::new(Double { arch, size, held: experts.clone(), slots: BTreeMap::new(), strings: strings() })))
}

impl Double {
    fn intact(&self) -> Result<(), ExecutorError> {
        match self.strings.weights_change.load(Ordering::Relaxed) {
            true => Err(ExecutorError::Weights { reason: "WeightsChanged", message: "on purpose".into() }),
            false => Ok(()),
        }
    }

    fn experts(&self, layer: LayerId, x: &[u64], uses: &[Use]) -> Vec<u64> {
        let mut sums = vec![0; x.len()];
        for one in uses {
            assert!(self.held.contains(layer, ExpertId(one.expert)), "it was checked");
            sums[one.row as usize] += expert(layer.0, one.expert, x[one.row as usize]) * one.weight as u64;
        }
        sums
    }

    fn append(&self, numbers: impl Iterator<Item = u64>, out: &mut BytesMut) {
        for number in numbers {
            let start = out.len();
            out.resize(start + self.arch.hidden * 4, 0);
            out[start..start + 4].copy_from_slice(&(number as f32).to_le_bytes());
        }
    }

    fn numbers<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = u64> + use<'a> {
        bytes.chunks(self.arch.hidden * 4).map(|row| f32::from_le_bytes([row[0], row[1], row[2], row[3]]) as u64)
    }
}

impl Network for Double {
    type Weights = Arc<Checkpoint>;
    type Brought = (LayerId, ExpertId);
    type InFlight = Rows;

    fn architecture(&self) -> &Architecture {
        &self.arch
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { device: "double".into(), size: self.size, wire_bytes: 4, same_bits: true }
    }

    fn held(&self) -> &ExpertSet {
        &self.held
    }

    fn begin(&mut self, batch: &Batch, _: &Tables) -> Result<Rows, ExecutorError> {
        let mut x = Vec::new();
        for segment in &batch.segments {
            if segment.position == 0 {
                self.slots.insert(segment.slot, 1);
            }
            let seen = self.slots.get_mut(&segment.slot).unwrap();
            for row in segment.rows() {
                *seen = mix(*seen, u64::from(batch.ids[row]));
                x.push(*seen % MODULUS);
            }
        }
        Ok(Rows { sums: vec![0; x.len()], x })
    }

    fn attention(&mut self, rows: &mut Rows, layer: LayerId, routing: &mut LayerRouting) -> Result<bool, ExecutorError> {
        self.intact()?;
        routing.reset(rows.x.len(), 2);
        rows.sums.fill(0);
        for (row, x) in rows.x.iter_mut().enumerate() {
            *x = attended(layer.0, *x);
            routing.experts[2 * row..2 * row + 2].copy_from_slice(&experts_of(&self.arch, layer.0, *x));
        }
        routing.weights.fill(1.0);
        Ok(true)
    }

    fn gather(&mut self, rows: &Rows, picked: &[u32], out: &mut BytesMut) -> Result<(), ExecutorError> {
        self.append(picked.iter().map(|row| rows.x[*row as usize]), out);
        Ok(())
    }

    fn local(&mut self, rows: &mut Rows, layer: LayerId, uses: &[Use]) -> Result<(), ExecutorError> {
        let sums = self.experts(layer, &rows.x, uses);
        rows.sums.iter_mut().zip(sums).for_each(|(sum, more)| *sum += more);
        Ok(())
    }

    fn accumulate(&mut self, rows: &mut Rows, to: &[u32], sums: &[u8]) -> Result<(), ExecutorError> {
        let sums: Vec<u64> = self.numbers(sums).collect();
        to.iter().zip(sums).for_each(|(row, more)| rows.sums[*row as usize] += more);
        Ok(())
    }

    fn combine(&mut self, rows: &mut Rows, _: LayerId) -> Result<(), ExecutorError> {
        rows.x.iter_mut().zip(&rows.sums).for_each(|(x, sum)| *x = (*x + sum) % MODULUS);
        Ok(())
    }

    fn end(&mut self, rows: &mut Rows, batch: &Batch, results: &mut Results) -> Result<(), ExecutorError> {
        let drawn = batch.draws.iter().map(|draw| Drawn { id: Ok(says(rows.x[draw.row as usize])), logprobs: None });
        results.drawn.extend(drawn);
        Ok(())
    }

    fn reuse(&mut self, _: Rows) {}

    fn serve(&mut self, layer: LayerId, requests: &[Request], uses: &[Use]) -> Result<Vec<Bytes>, ExecutorError> {
        self.intact()?;
        MOST_TOGETHER.with_borrow_mut(|most| *most = (*most).max(requests.len()));
        let x: Vec<u64> = requests.iter().flat_map(|request| self.numbers(&request.hidden).collect::<Vec<_>>()).collect();
        let mut sums = BytesMut::new();
        self.append(self.experts(layer, &x, uses).into_iter(), &mut sums);
        Ok(cut(sums, requests, self.arch.hidden * 4))
    }

    fn bring(
        &self,
        experts: ExpertSet,
    ) -> Box<dyn FnOnce(&Arc<Checkpoint>, Progress<'_>, &mut dyn FnMut(Self::Brought)) -> Result<(), ExecutorError> + Send> {
        let strings = self.strings.clone();
        Box::new(move |_, progress, take| {
            while strings.loads_wait.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if strings.loads_fail.load(Ordering::Relaxed) {
                return Err(ExecutorError::Weights { reason: "Test", message: "on purpose".into() });
            }
            progress(1);
            experts.iter().for_each(take);
            Ok(())
        })
    }

    fn hold(&mut self, (layer, expert): Self::Brought) {
        self.held.insert(layer, expert);
    }

    fn let_go(&mut self, experts: &ExpertSet) {
        for (layer, expert) in experts.iter() {
            self.held.remove(layer, expert);
        }
    }

    fn export(&mut self, slot: SlotId, tables: &Tables) -> Result<SequenceState, ExecutorError> {
        let bytes = Bytes::copy_from_slice(&self.slots[&slot].to_le_bytes());
        Ok(SequenceState { tokens: tables.tokens(slot)?, bytes })
    }

    fn import(&mut self, slot: SlotId, _: &Tables, state: &SequenceState) -> Result<(), ExecutorError> {
        self.slots.insert(slot, u64::from_le_bytes(state.bytes[..].try_into().unwrap()));
        Ok(())
    }

    fn fork(&mut self, from: SlotId, to: SlotId, _: Option<(u32, u32)>) -> Result<(), ExecutorError> {
        self.slots.insert(to, self.slots[&from]);
        Ok(())
    }
}
