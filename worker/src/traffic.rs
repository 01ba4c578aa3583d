//! Counts what goes between this pod and its peers: request and answer frames and the bytes of their rows, by peer, lane and
//! direction. Plain counters in place: counting costs two additions for each frame and no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use m1_exchange::{Lane, MAX_PODS, PodId};

/// Which way a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From this pod: its requests, and its answers to others' requests.
    Sent,
    /// To this pod.
    Received,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sent, Self::Received];

    /// As metrics say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

/// Frames and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Volume {
    /// Requests and answers; greetings, heartbeats and credits are not counted.
    pub frames: u64,
    /// Hidden states, sums, experts and weights in them, without the encoding around.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Cell {
    frames: AtomicU64,
    bytes: AtomicU64,
}

/// By direction, lane and peer.
#[derive(Debug)]
pub struct Traffic {
    cells: [[[Cell; MAX_PODS]; Lane::ALL.len()]; Direction::ALL.len()],
}

impl Default for Traffic {
    fn default() -> Self {
        Self { cells: std::array::from_fn(|_| std::array::from_fn(|_| std::array::from_fn(|_| Cell::default()))) }
    }
}

impl Traffic {
    /// Counts one frame.
    pub fn count(&self, peer: PodId, lane: Lane, direction: Direction, bytes: usize) {
        if let Some(cell) = self.cell(peer, lane, direction) {
            cell.frames.fetch_add(1, Ordering::Relaxed);
            cell.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    pub fn volume(&self, peer: PodId, lane: Lane, direction: Direction) -> Volume {
        self.cell(peer, lane, direction).map_or_else(Volume::default, |cell| Volume {
            frames: cell.frames.load(Ordering::Relaxed),
            bytes: cell.bytes.load(Ordering::Relaxed),
        })
    }

    /// Frames that came from all peers together: as long as it grows, peers need this pod or answer it.
    pub fn received(&self) -> u64 {
        let lanes = self.cells[Direction::Received as usize].iter();
        lanes.flatten().map(|cell| cell.frames.load(Ordering::Relaxed)).sum()
    }

    fn cell(&self, peer: PodId, lane: Lane, direction: Direction) -> Option<&Cell> {
        let lane = Lane::ALL.iter().position(|other| *other == lane)?;
        self.cells[direction as usize][lane].get(usize::from(peer.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_lane_and_direction_is_counted_apart() {
        let traffic = Traffic::default();
        traffic.count(PodId(63), Lane::Bulk, Direction::Received, 7);
        traffic.count(PodId(63), Lane::Bulk, Direction::Received, 5);
        traffic.count(PodId(0), Lane::Decode, Direction::Sent, 1);
        traffic.count(PodId(64), Lane::Decode, Direction::Sent, 1);
        assert_eq!(traffic.volume(PodId(63), Lane::Bulk, Direction::Received), Volume { frames: 2, bytes: 12 });
        assert_eq!(traffic.volume(PodId(63), Lane::Bulk, Direction::Sent), Volume::default());
        assert_eq!(traffic.volume(PodId(0), Lane::Decode, Direction::Sent), Volume { frames: 1, bytes: 1 });
        assert_eq!(traffic.received(), 2);
    }
}
