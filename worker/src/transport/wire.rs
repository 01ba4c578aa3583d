//! Dispatch frames: building them from the device's buffers and checking what a peer sent before anything sees it.
//! Every size is checked here, so the device thread may trust a [`RequestFrame`].

use bytes::{BufMut, Bytes, BytesMut};
use m1_arch::{Architecture, LayerId};
use m1_exchange::{Lane, UNUSED};
use m1_proto::dispatch as pb;

/// Version of the dispatch protocol. Raised when a frame changes its meaning.
pub const PROTOCOL: u32 = 1;

/// What two pods must agree on before a row may pass between them.
#[derive(Debug, Clone)]
pub struct Identity {
    /// This pod.
    pub pod: u16,
    /// Of the checkpoint.
    pub digest: String,
    /// Of a part of its values; empty where nobody looked at them.
    pub values: String,
    /// The model's shape.
    pub arch: Architecture,
}

/// Bytes of one hidden-state element on the wire: fp32 on a CPU.
pub const ELEMENT: usize = 4;
/// Name of the element type in `Hello`.
pub const DTYPE: &str = "float32";

/// A peer's request after every check.
#[derive(Debug)]
pub struct RequestFrame {
    /// The requester's own number for it.
    pub id: u64,
    /// The requester's placement epoch.
    pub epoch: u64,
    /// The MoE layer.
    pub layer: LayerId,
    /// Rows.
    pub tokens: u32,
    /// Expert slots per row.
    pub slots: usize,
    /// [tokens, slots]; [`UNUSED`](m1_exchange::UNUSED) where a slot is not this pod's.
    pub experts: Vec<u16>,
    /// [tokens, slots].
    pub weights: Vec<f32>,
    /// fp32 [tokens, hidden], little-endian.
    pub hidden: Bytes,
}

/// A peer's frame or greeting that breaks the protocol.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum WireError {
    /// A number outside its range.
    #[error("{field}: {given} given, allowed: {allowed}")]
    Range {
        /// Of the frame.
        field: &'static str,
        /// What came.
        given: u64,
        /// What may come.
        allowed: String,
    },
    /// A byte field of the wrong length.
    #[error("{field}: {given} bytes given, {needed} needed for {tokens} tokens")]
    Size {
        /// Of the frame.
        field: &'static str,
        /// What came.
        given: usize,
        /// What the token count needs.
        needed: usize,
        /// Of the frame.
        tokens: u32,
    },
    /// A greeting that does not fit this pod.
    #[error("{field}: the peer has {theirs}, this pod has {ours}")]
    Mismatch {
        /// Of `Hello`.
        field: &'static str,
        /// The peer's.
        theirs: String,
        /// This pod's.
        ours: String,
    },
    /// A frame where another kind was due.
    #[error("{given} where {allowed} was due")]
    Order {
        /// What came.
        given: &'static str,
        /// What was due.
        allowed: &'static str,
    },
}

impl WireError {
    /// One word for logs, metrics and `Refused`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Range { .. } => "ValueOutOfRange",
            Self::Size { .. } => "WrongSize",
            Self::Mismatch { field: "weights_digest" | "values_digest", .. } => "WeightsMismatch",
            Self::Mismatch { field: "protocol", .. } => "ProtocolMismatch",
            Self::Mismatch { .. } => "ShapeMismatch",
            Self::Order { .. } => "UnexpectedFrame",
        }
    }
}

/// What a stream is for. On the wire both are lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Rows and sums of this lane; heartbeats too, on the decode lane, where the other side knows no other way.
    Rows(Lane),
    /// Heartbeats.
    Pulse,
}

impl Identity {
    /// The greeting of one connection of rows.
    pub fn hello(&self, lane: Lane, epoch: u64, credits: u32) -> pb::Hello {
        self.greeting(Purpose::Rows(lane), epoch, credits)
    }

    /// The greeting of one connection.
    pub fn greeting(&self, purpose: Purpose, epoch: u64, credits: u32) -> pb::Hello {
        pb::Hello {
            protocol: PROTOCOL,
            pod: self.pod.into(),
            lane: purpose_to_wire(purpose).into(),
            weights_digest: self.digest.clone(),
            dtype: DTYPE.into(),
            epoch,
            hidden_size: self.arch.hidden as u32,
            credits,
            pulse: true,
            values_digest: self.values.clone(),
        }
    }

    /// Refuses a peer that speaks another protocol or has other weights.
    pub fn check(&self, hello: &pb::Hello) -> Result<(), WireError> {
        same("protocol", hello.protocol, PROTOCOL)?;
        same("weights_digest", hello.weights_digest.as_str(), self.digest.as_str())?;
        // An older peer, and one that fetches, says nothing of values.
        if !hello.values_digest.is_empty() && !self.values.is_empty() {
            same("values_digest", hello.values_digest.as_str(), self.values.as_str())?;
        }
        same("dtype", hello.dtype.as_str(), DTYPE)?;
        same("hidden_size", hello.hidden_size, self.arch.hidden as u32)?;
        if hello.pod == u32::from(self.pod) {
            let allowed = format!("another one than this pod's, at most {}", m1_exchange::MAX_PODS - 1);
            return Err(WireError::Range { field: "pod", given: hello.pod.into(), allowed });
        }
        within("pod", hello.pod.into(), 0, m1_exchange::MAX_PODS as u64 - 1)
    }
}

fn same<T: PartialEq + ToString>(field: &'static str, theirs: T, ours: T) -> Result<(), WireError> {
    if theirs == ours {
        return Ok(());
    }
    Err(WireError::Mismatch { field, theirs: theirs.to_string(), ours: ours.to_string() })
}

/// What a greeting is for; an unknown lane is an error.
pub fn purpose_from_wire(lane: i32) -> Result<Purpose, WireError> {
    match pb::Lane::try_from(lane) {
        Ok(pb::Lane::Decode) => Ok(Purpose::Rows(Lane::Decode)),
        Ok(pb::Lane::Prefill) => Ok(Purpose::Rows(Lane::Prefill)),
        Ok(pb::Lane::Bulk) => Ok(Purpose::Rows(Lane::Bulk)),
        Ok(pb::Lane::Pulse) => Ok(Purpose::Pulse),
        _ => Err(WireError::Range { field: "lane", given: lane as u64, allowed: "1 to 4".into() }),
    }
}

fn purpose_to_wire(purpose: Purpose) -> pb::Lane {
    match purpose {
        Purpose::Rows(Lane::Decode) => pb::Lane::Decode,
        Purpose::Rows(Lane::Prefill) => pb::Lane::Prefill,
        Purpose::Rows(Lane::Bulk) => pb::Lane::Bulk,
        Purpose::Pulse => pb::Lane::Pulse,
    }
}

/// Checks a peer's request against the model: layer, experts, finite weights, and every byte field against the token count.
pub fn check_request(arch: &Architecture, frame: pb::Request) -> Result<RequestFrame, WireError> {
    within("layer", frame.layer.into(), 0, arch.layers.len() as u64 - 1)?;
    within("slots", frame.slots.into(), 1, arch.top_k as u64)?;
    within("tokens", frame.tokens.into(), 1, (m1_exchange::MAX_FRAME_BYTES / ELEMENT) as u64)?;
    let (tokens, slots) = (frame.tokens as usize, frame.slots as usize);
    sized("experts", &frame.experts, tokens * slots * 2, frame.tokens)?;
    sized("weights", &frame.weights, tokens * slots * 4, frame.tokens)?;
    sized("hidden", &frame.hidden, tokens * arch.hidden * ELEMENT, frame.tokens)?;
    let experts: Vec<u16> = frame.experts.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    for &expert in experts.iter().filter(|e| **e != UNUSED) {
        within("experts", expert.into(), 0, arch.experts as u64 - 1)?;
    }
    let weights: Vec<f32> = frame.weights.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if let Some(weight) = weights.iter().find(|w| !(0.0..=1.0).contains(*w)) {
        return Err(WireError::Range {
            field: "weights",
            given: weight.to_bits().into(),
            allowed: "0.0 to 1.0, given as fp32 bits".into(),
        });
    }
    Ok(RequestFrame {
        id: frame.id,
        epoch: frame.epoch,
        layer: LayerId(frame.layer as u16),
        tokens: frame.tokens,
        slots,
        experts,
        weights,
        hidden: frame.hidden,
    })
}

/// Checks the size of a peer's answer.
pub fn check_answer(arch: &Architecture, answer: &pb::Answer) -> Result<(), WireError> {
    sized("sums", &answer.sums, (answer.tokens as usize).saturating_mul(arch.hidden * 4), answer.tokens)
}

fn within(field: &'static str, given: u64, low: u64, high: u64) -> Result<(), WireError> {
    if (low..=high).contains(&given) {
        return Ok(());
    }
    Err(WireError::Range { field, given, allowed: format!("{low} to {high}") })
}

fn sized(field: &'static str, bytes: &[u8], needed: usize, tokens: u32) -> Result<(), WireError> {
    if bytes.len() == needed {
        return Ok(());
    }
    Err(WireError::Size { field, given: bytes.len(), needed, tokens })
}

/// Builds a request from slots and the gathered hidden states. `experts` and `weights` are [tokens, slots].
pub fn request_frame(head: RequestHead, experts: &[u16], weights: &[f32], hidden: Bytes) -> pb::Request {
    let mut expert_bytes = BytesMut::with_capacity(experts.len() * 2);
    experts.iter().for_each(|e| expert_bytes.put_u16_le(*e));
    let mut weight_bytes = BytesMut::with_capacity(weights.len() * 4);
    weights.iter().for_each(|w| weight_bytes.put_f32_le(*w));
    pb::Request {
        id: head.id,
        epoch: head.epoch,
        layer: head.layer.0.into(),
        tokens: head.tokens,
        slots: (experts.len() / head.tokens.max(1) as usize) as u32,
        experts: expert_bytes.freeze(),
        weights: weight_bytes.freeze(),
        hidden,
    }
}

/// The numbers at the front of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead {
    /// The requester's own number.
    pub id: u64,
    /// Its placement epoch.
    pub epoch: u64,
    /// The MoE layer.
    pub layer: LayerId,
    /// Rows, at least 1.
    pub tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arch() -> Architecture {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/m1-demo/config.json")).unwrap();
        Architecture::from_json(&text).unwrap()
    }

    fn good() -> pb::Request {
        let head = RequestHead { id: 1, epoch: 1, layer: LayerId(3), tokens: 2 };
        request_frame(head, &[0, 31, UNUSED, 4], &[0.5, 0.5, 0.0, 1.0], Bytes::from(vec![0; 2 * 128 * 4]))
    }

    fn error(change: impl FnOnce(&mut pb::Request)) -> String {
        let mut frame = good();
        change(&mut frame);
        check_request(&arch(), frame).unwrap_err().to_string()
    }

    #[test]
    fn a_good_request_passes() {
        let frame = check_request(&arch(), good()).unwrap();
        assert_eq!((frame.tokens, frame.slots, frame.experts), (2, 2, vec![0, 31, UNUSED, 4]));
    }

    #[test]
    fn wrong_frames_are_named() {
        assert_eq!(error(|f| f.layer = 8), "layer: 8 given, allowed: 0 to 7");
        assert_eq!(error(|f| f.slots = 3), "slots: 3 given, allowed: 1 to 2");
        assert_eq!(error(|f| f.tokens = 0), "tokens: 0 given, allowed: 1 to 131072");
        assert_eq!(error(|f| f.tokens = 3), "experts: 8 bytes given, 12 needed for 3 tokens");
        assert_eq!(error(|f| f.hidden = Bytes::from_static(b"x")), "hidden: 1 bytes given, 1024 needed for 2 tokens");
        assert_eq!(error(|f| f.experts = Bytes::from_static(&[32, 0, 0, 0, 0, 0, 0, 0])), "experts: 32 given, allowed: 0 to 31");
        assert!(error(|f| f.weights = Bytes::from([f32::NAN.to_le_bytes(); 4].concat())).starts_with("weights: "));
    }

    #[test]
    fn another_checkpoint_is_refused() {
        let of = |pod, digest: &str, values: &str| Identity { pod, digest: digest.into(), values: values.into(), arch: arch() };
        let ours = of(0, "a", "v");
        let refusal = |digest, values| {
            let error = ours.check(&of(1, digest, values).hello(Lane::Decode, 1, 1)).unwrap_err();
            (error.reason(), error.to_string())
        };
        assert_eq!(refusal("b", "v"), ("WeightsMismatch", "weights_digest: the peer has b, this pod has a".to_owned()));
        assert_eq!(refusal("a", "w"), ("WeightsMismatch", "values_digest: the peer has w, this pod has v".to_owned()));
        for known in ["v", ""] {
            assert!(ours.check(&of(1, "a", known).hello(Lane::Decode, 1, 1)).is_ok(), "{known:?}: as an older peer says it");
        }
    }
}
