//! How many sequences and tokens a device has room for beside its weights.
//!
//! Memory known: reserve, weights, one slot and one window come first; of what is left a quarter at most goes to further
//! state slots, the rest to KV. Not known (a CPU): fixed budgets, so that a laptop is not filled.

use m1_arch::{Bytes, GpuShare, Storage};
use serde::Serialize;

use crate::{Device, DeviceBytes};

/// Share of a GPU that is never planned: driver context, communication buffers, activations of a step, gaps of the
/// allocator. Engines of this kind leave about as much; measured peaks would allow less.
const RESERVE_DIVISOR: u64 = 10;
/// Most sequences a GPU pod runs at once: beyond it a decode step is bound by compute, and waiting in the queue is fairer.
const MOST_GPU_SLOTS: u64 = 64;
/// Most sequences a CPU pod runs at once.
const MOST_CPU_SLOTS: u64 = 16;
/// Part of the free memory that further state slots may take; the rest is KV, which grows with length.
const STATE_SHARE_DIVISOR: u64 = 4;
/// Where memory is not known: most bytes for state, and the same for KV, unless one sequence needs more.
const UNKNOWN_MEMORY_BUDGET: Bytes = Bytes(1_000_000_000);

/// Sequences and tokens a pod has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// State slots: sequences at the same time.
    pub slots: u32,
    /// KV tokens of all sequences together; at least one window, at most a window per slot.
    pub kv_tokens: u64,
}

/// The part of a device that is never planned.
pub(crate) fn reserve(memory: Bytes) -> Bytes {
    Bytes(memory.0 / RESERVE_DIVISOR)
}

/// Divides a device beside its `weights`. Whoever calls has seen that one slot and one window fit.
pub(crate) fn divide(
    share: &GpuShare<'_>,
    dtype: Storage,
    window: u32,
    weights: DeviceBytes,
    memory: Option<Bytes>,
) -> (Capacity, DeviceBytes) {
    let (slot, token) = (share.state_bytes_per_sequence(), share.kv_bytes_per_token(dtype));
    let window = u64::from(window);
    let capacity = match memory {
        Some(memory) => {
            let left = memory.saturating_sub(reserve(memory)).saturating_sub(weights.weights());
            let beyond = left.saturating_sub(slot).saturating_sub(token * window);
            let slots = 1 + times(Bytes(beyond.0 / STATE_SHARE_DIVISOR), slot).min(MOST_GPU_SLOTS - 1);
            capacity(slots, times(left.saturating_sub(slot * slots), token), window)
        }
        None => {
            let slots = times(UNKNOWN_MEMORY_BUDGET, slot).clamp(1, MOST_CPU_SLOTS);
            capacity(slots, times(UNKNOWN_MEMORY_BUDGET, token), window)
        }
    };
    let (kv, state) = (token * capacity.kv_tokens, slot * u64::from(capacity.slots));
    let reserve = memory.map_or(Bytes(0), reserve);
    let used = weights.weights() + kv + state + reserve;
    let free = memory.map_or(Bytes(0), |memory| memory.saturating_sub(used));
    (capacity, DeviceBytes { kv, state, reserve, free, memory, ..weights })
}

/// What a pod computes on: GPUs where their memory is known.
pub(crate) fn device(memory: Option<Bytes>) -> Device {
    if memory.is_some() { Device::Gpu } else { Device::Cpu }
}

fn capacity(slots: u64, tokens: u64, window: u64) -> Capacity {
    Capacity { slots: slots as u32, kv_tokens: tokens.clamp(window, window * slots) }
}

/// How often `part` goes into `whole`; as often as one likes where it takes nothing.
fn times(whole: Bytes, part: Bytes) -> u64 {
    whole.0.checked_div(part.0).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use m1_arch::Architecture;

    use super::*;

    fn weights(gb: u64) -> DeviceBytes {
        DeviceBytes { experts: Bytes(gb * 1_000_000_000), ..DeviceBytes::default() }
    }

    #[test]
    fn a_gpu_is_divided_without_a_rest_that_could_serve() {
        let m1 = Architecture::minimax_m1();
        let share = GpuShare::new(&m1, 8).unwrap();
        let (capacity, bytes) = divide(&share, Storage::BFloat16, 1_000_000, weights(60), Some(Bytes(80_000_000_000)));
        assert_eq!((bytes.reserve.to_string(), bytes.memory), ("8.0 GB".to_owned(), Some(Bytes(80_000_000_000))));
        assert_eq!(capacity.slots, 47);
        assert!(capacity.kv_tokens > 2_000_000);
        let used = bytes.weights() + bytes.kv + bytes.state + bytes.reserve + bytes.free;
        assert_eq!(used, Bytes(80_000_000_000));
        assert!(bytes.free < share.kv_bytes_per_token(Storage::BFloat16));
    }

    #[test]
    fn short_windows_leave_memory_free_rather_than_hold_kv_nobody_can_fill() {
        let m1 = Architecture::minimax_m1();
        let share = GpuShare::new(&m1, 8).unwrap();
        let (capacity, bytes) = divide(&share, Storage::BFloat16, 4096, weights(60), Some(Bytes(80_000_000_000)));
        assert_eq!((capacity.slots, capacity.kv_tokens), (64, 64 * 4096));
        assert!(bytes.free > Bytes(1_000_000_000));
    }

    #[test]
    fn an_unknown_memory_gets_small_budgets_but_always_one_window() {
        let m1 = Architecture::minimax_m1();
        let share = GpuShare::new(&m1, 1).unwrap();
        let (capacity, _) = divide(&share, Storage::Float32, 1_000_000, weights(0), None);
        assert_eq!((capacity.slots, capacity.kv_tokens), (3, 1_000_000));
    }
}
