//! A token's log-probabilities. Nobody but who tells a client looks at the alternatives, twenty a token, and whoever passes them on must not pay for that:
//! they stay the bytes that came until somebody reads them. On the wire this is the message of the same name in `worker.proto`.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// Natural logarithms of probabilities.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// The token's own.
    pub logprob: f32,
    /// Packed: varints.
    ids: Bytes,
    /// Packed: little-endian floats.
    logprobs: Bytes,
}

impl TokenLogprobs {
    /// A token's and its best alternatives'.
    pub fn new(logprob: f32, top: impl IntoIterator<Item = (u32, f32)>) -> Self {
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        for (id, logprob) in top {
            encoding::encode_varint(id.into(), &mut ids);
            logprobs.put_f32_le(logprob);
        }
        Self { logprob, ids: ids.into(), logprobs: logprobs.into() }
    }

    /// Bytes of the message that it came in which it keeps.
    pub fn kept(&self) -> usize {
        self.ids.len() + self.logprobs.len()
    }

    /// The best alternatives, up to where the bytes make sense.
    pub fn top(&self) -> impl Iterator<Item = (u32, f32)> {
        let (mut ids, mut logprobs) = (&self.ids[..], &self.logprobs[..]);
        std::iter::from_fn(move || {
            let id = encoding::decode_varint(&mut ids).ok()?;
            Some((u32::try_from(id).ok()?, logprobs.try_get_f32_le().ok()?))
        })
    }
}

impl Message for TokenLogprobs {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if self.logprob != 0.0 {
            encoding::float::encode(1, &self.logprob, buf);
        }
        for (tag, packed) in [(2, &self.ids), (3, &self.logprobs)] {
            if !packed.is_empty() {
                encoding::bytes::encode(tag, packed, buf);
            }
        }
    }

    fn merge_field(&mut self, tag: u32, wire_type: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        match tag {
            1 => encoding::float::merge(wire_type, &mut self.logprob, buf, ctx),
            2 => encoding::bytes::merge(wire_type, &mut self.ids, buf, ctx),
            3 => encoding::bytes::merge(wire_type, &mut self.logprobs, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let own = if self.logprob == 0.0 { 0 } else { encoding::float::encoded_len(1, &self.logprob) };
        let packed = [(2, &self.ids), (3, &self.logprobs)].into_iter().filter(|(_, packed)| !packed.is_empty());
        own + packed.map(|(tag, packed)| encoding::bytes::encoded_len(tag, packed)).sum::<usize>()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message as prost would have made it.
    #[derive(Clone, PartialEq, Message)]
    struct Plain {
        #[prost(float, tag = "1")]
        logprob: f32,
        #[prost(uint32, repeated, tag = "2")]
        top_ids: Vec<u32>,
        #[prost(float, repeated, tag = "3")]
        top_logprobs: Vec<f32>,
    }

    #[test]
    fn it_is_the_message_of_the_wire() {
        for top in [vec![], vec![(0, 0.0)], vec![(7, -0.5), (200_063, -1.25), (u32::MAX, f32::MIN)]] {
            for logprob in [0.0, -0.75] {
                let ours = TokenLogprobs::new(logprob, top.clone());
                let (top_ids, top_logprobs) = top.iter().copied().unzip();
                let plain = Plain { logprob, top_ids, top_logprobs };
                assert_eq!(ours.encode_to_vec(), plain.encode_to_vec());
                assert_eq!(ours.encoded_len(), plain.encoded_len());
                let read = TokenLogprobs::decode(plain.encode_to_vec().as_slice()).unwrap();
                assert_eq!(read.top().collect::<Vec<_>>(), top);
                assert_eq!(read, ours);
            }
        }
    }

    #[test]
    fn bytes_that_make_no_sense_end_the_list() {
        let mut odd = TokenLogprobs::new(-1.0, [(1, -1.0), (2, -2.0)]);
        odd.logprobs.truncate(7);
        assert_eq!(odd.top().collect::<Vec<_>>(), [(1, -1.0)]);
        odd.ids = Bytes::from_static(&[0xff; 11]);
        assert_eq!(odd.top().count(), 0);
    }

    #[test]
    fn other_wire_types_are_errors() {
        for bytes in [&[0x0d, 0, 0][..], &[0x10, 1], &[0x1d, 0, 0, 0, 0], &[0x12, 9, 1]] {
            assert!(TokenLogprobs::decode(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(
            TokenLogprobs::decode(&[0x20, 1][..]),
            Ok(TokenLogprobs::default()),
            "fields of a later version are passed over"
        );
    }
}
