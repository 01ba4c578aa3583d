//! What hyper does not tell of a request's head: whether it gives the length of its body in two ways, on which two servers may disagree, and whether
//! the client speaks HTTP/2 from the start.

/// The first bytes of a client that speaks HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// The longest name that is looked for.
const NAME: usize = 17;

/// How a request's body is framed, as its head says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// The head was seen whole. Else it was pipelined and came with another request.
    pub known: bool,
    /// It has a Content-Length.
    pub length: bool,
    /// It has a Transfer-Encoding.
    pub encoding: bool,
}

/// Reads a head as it comes.
#[derive(Debug, Default)]
pub struct Scanner {
    framing: Framing,
    started: bool,
    /// The head has ended.
    over: bool,
    /// The line's first bytes, in lower case.
    name: [u8; NAME],
    line: usize,
}

impl Scanner {
    /// Takes the next bytes of the head, and what may follow it; says how many those are that follow. A first line of HTTP/2 is made one of HTTP/1.1, so that
    /// it is answered.
    pub fn feed(&mut self, bytes: &mut [u8]) -> usize {
        if !self.started
            && bytes.starts_with(PREFACE)
            && let Some(version) = bytes.get_mut(PREFACE.len() - 3..PREFACE.len())
        {
            version.copy_from_slice(b"1.1");
        }
        self.started |= !bytes.is_empty();
        for (place, byte) in bytes.iter().copied().enumerate() {
            if self.over {
                return bytes.len() - place;
            }
            match byte {
                b'\r' => {}
                // An empty line before the request is allowed; the one after it is the end.
                b'\n' if self.line == 0 => self.over = self.framing.known,
                b'\n' => {
                    self.framing.known = true;
                    self.line = 0;
                }
                byte => {
                    if byte == b':' {
                        match self.name.get(..self.line) {
                            Some(b"content-length") => self.framing.length = true,
                            Some(b"transfer-encoding") => self.framing.encoding = true,
                            _ => {}
                        }
                    }
                    if let Some(place) = self.name.get_mut(self.line) {
                        *place = byte.to_ascii_lowercase();
                    }
                    self.line = self.line.saturating_add(1);
                }
            }
        }
        0
    }

    /// What the head says.
    pub fn framing(self) -> Framing {
        Framing { known: self.over, ..self.framing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(parts: &[&str]) -> Framing {
        let mut scanner = Scanner::default();
        for part in parts {
            scanner.feed(&mut part.as_bytes().to_vec());
        }
        scanner.framing()
    }

    #[test]
    fn both_ways_of_framing_are_seen_however_the_head_is_cut() {
        let head = "POST / HTTP/1.1\r\nContent-Length: 4\r\nX: content-length:1\r\nTRANSFER-ENCODING: chunked\r\n\r\nabcd";
        let both = Framing { known: true, length: true, encoding: true };
        assert_eq!(framing(&[head]), both);
        for cut in 1..head.len() {
            assert_eq!(framing(&[&head[..cut], &head[cut..]]), both, "cut at {cut}");
        }
    }

    #[test]
    fn bodies_and_values_are_no_names() {
        let head = "\r\nPOST / HTTP/1.1\nX-Content-Length: 1\nA: transfer-encoding: x\nTransfer-Encoding-Foo: x\n\ncontent-length: 3\ntransfer-encoding: y\n";
        assert_eq!(framing(&[head]), Framing { known: true, length: false, encoding: false });
        assert!(!framing(&["POST / HTTP/1.1\r\nContent-Length: 1\r\n"]).known);
    }

    #[test]
    fn http_2_is_made_answerable() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        Scanner::default().feed(&mut bytes);
        assert!(bytes.starts_with(b"PRI * HTTP/1.1\r\n"));
        let mut bytes = b"GET /?PRI * HTTP/2.0".to_vec();
        Scanner::default().feed(&mut bytes);
        assert!(bytes.ends_with(b"HTTP/2.0"));
    }
}
