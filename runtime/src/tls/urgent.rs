//! How a connection says that it is urgent, before anything is asked on it: whoever serves it may then wait for it in another place than for the rest. With
//! TLS by the protocol that is agreed upon (ALPN), else by one of the settings that HTTP/2 begins with. Whoever knows nothing of it serves such a
//! connection as any other.

/// Offered beside `h2`, and preferred by servers that know it.
pub(super) const PROTOCOL: &[u8] = b"m1-urgent";
/// The largest list of headers that an urgent connection takes, in bytes. Nobody else asks for that number.
pub const HEADER_LIST: u32 = (16 << 10) + 0x6d31;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length (3 bytes), type, flags, stream (4 bytes).
const FRAME: usize = 9;
/// Number (2 bytes) and value (4 bytes).
const SETTING: usize = 6;
const SETTINGS: u8 = 4;
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// Settings that are looked at: more than HTTP/2 has.
const LOOKED_AT: usize = 10;
/// Bytes that are looked at.
pub(super) const HEAD: usize = PREFACE.len() + FRAME + LOOKED_AT * SETTING;

/// Whether these first bytes of a connection say that it is urgent. None: they may yet.
pub(super) fn marked(head: &[u8]) -> Option<bool> {
    let known = head.len().min(PREFACE.len());
    if head[..known] != PREFACE[..known] {
        return Some(false);
    }
    let (frame, settings) = head[known..].split_at_checked(FRAME)?;
    let length = usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2]);
    if frame[3] != SETTINGS {
        return Some(false);
    }
    let length = length.min(LOOKED_AT * SETTING);
    let found = settings[..length.min(settings.len())].chunks_exact(SETTING).any(|setting| {
        let number = u16::from_be_bytes([setting[0], setting[1]]);
        number == MAX_HEADER_LIST_SIZE && setting[2..] == HEADER_LIST.to_be_bytes()
    });
    (found || settings.len() >= length).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(settings: &[(u16, u32)]) -> Vec<u8> {
        let length = (settings.len() * SETTING) as u8;
        let mut head = [PREFACE, &[0, 0, length, SETTINGS, 0, 0, 0, 0, 0]].concat();
        for (number, value) in settings {
            head.extend(number.to_be_bytes());
            head.extend(value.to_be_bytes());
        }
        head
    }

    #[test]
    fn the_mark_is_known_from_as_few_bytes_as_hold_it() {
        let full = head(&[(4, 1 << 24), (MAX_HEADER_LIST_SIZE, HEADER_LIST), (5, 1 << 20)]);
        for cut in 0..=full.len() {
            let expected = (cut >= full.len() - SETTING).then_some(true);
            assert_eq!(marked(&full[..cut]), expected, "{cut} bytes");
        }
        let last = head(&[(4, 1 << 24), (MAX_HEADER_LIST_SIZE, HEADER_LIST - 1)]);
        for cut in 0..=last.len() {
            assert_eq!(marked(&last[..cut]), (cut == last.len()).then_some(false), "{cut} bytes");
        }
    }

    #[test]
    fn what_is_no_mark_is_known_at_once() {
        assert_eq!(marked(b"G"), Some(false), "another protocol");
        assert_eq!(marked(&head(&[])), Some(false));
        let mut other = head(&[(MAX_HEADER_LIST_SIZE, HEADER_LIST)]);
        other[PREFACE.len() + 3] = 0;
        assert_eq!(marked(&other[..PREFACE.len() + FRAME]), Some(false), "another frame");
        // A frame that says it is longer than anybody needs holds nobody up.
        let mut long = head(&[(1, 1); LOOKED_AT]);
        long[PREFACE.len()..][..3].fill(0xff);
        assert_eq!((long.len(), marked(&long)), (HEAD, Some(false)));
    }
}
