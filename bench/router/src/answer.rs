//! Reads an HTTP/1.1 answer as it comes, at as little cost as can be: what is measured is the router, not its client. Of the events it knows how many there were, when
//! the first with text in it came, and whether the last was `[DONE]`.

/// An answer that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad(pub &'static str);

impl std::fmt::Display for Bad {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.0)
    }
}

impl std::error::Error for Bad {}

/// Longest head, and most payload that is kept while the first text is looked for.
const LIMIT: usize = 64 << 10;
const DONE: &[u8] = b"[DONE]";
/// What a chunk with text looks like, in the spellings of the routers that are compared.
const TEXT: [&[u8]; 4] = [b"\"content\":", b"\"reasoning_content\":", b"\"reasoning\":", b"\"text\":"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Size,
    Chunk(usize),
    ChunkEnd(u8),
    Trailer,
    Whole(usize),
    Done,
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    state: State,
    /// Bytes of the line, or of the head, that is not over yet.
    line: Vec<u8>,
    /// 0 until the head is there.
    pub status: u16,
    /// Events so far.
    pub events: u32,
    /// A text was in one of them.
    pub text: bool,
    payload: Vec<u8>,
    matched: usize,
    last: [u8; 16],
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            state: State::Head,
            line: Vec::new(),
            status: 0,
            events: 0,
            text: false,
            payload: Vec::new(),
            matched: 0,
            last: [0; 16],
        }
    }
}

impl Answer {
    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.state == State::Done
    }

    /// Whether it is a stream that came to its end as OpenAI's do.
    pub fn is_finished_stream(&self) -> bool {
        self.is_whole() && self.status == 200 && self.last.windows(DONE.len()).any(|window| window == DONE)
    }

    /// Takes bytes as they come.
    ///
    /// # Errors
    /// They are no answer.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Bad> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Head => self.head(bytes)?,
                State::Size => self.size(bytes)?,
                State::Chunk(left) => {
                    let taken = left.min(bytes.len());
                    self.take(&bytes[..taken]);
                    self.state = if taken == left { State::ChunkEnd(2) } else { State::Chunk(left - taken) };
                    &bytes[taken..]
                }
                State::ChunkEnd(left) => {
                    self.state = if left == 1 { State::Size } else { State::ChunkEnd(left - 1) };
                    &bytes[1..]
                }
                State::Trailer => self.trailer(bytes)?,
                State::Whole(left) => {
                    let taken = left.min(bytes.len());
                    self.take(&bytes[..taken]);
                    self.state = if taken == left { State::Done } else { State::Whole(left - taken) };
                    &bytes[taken..]
                }
                State::Done => return Err(Bad("bytes after the answer")),
            };
        }
        Ok(())
    }

    /// Takes bytes up to and with `\n`; none while the line is not over.
    fn until_newline<'a>(&mut self, bytes: &'a [u8]) -> Result<(bool, &'a [u8]), Bad> {
        let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let taken = end.unwrap_or(bytes.len());
        self.line.extend_from_slice(&bytes[..taken]);
        if self.line.len() > LIMIT { Err(Bad("a line without end")) } else { Ok((end.is_some(), &bytes[taken..])) }
    }

    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Bad> {
        let (_, rest) = self.until_newline(bytes)?;
        if !self.line.ends_with(b"\r\n\r\n") {
            return Ok(rest);
        }
        let text = std::str::from_utf8(&self.line).map_err(|_| Bad("a head that is no text"))?;
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(Bad("no status"))?;
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.trim())
        };
        let chunked = field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let length = field("content-length").and_then(|length| length.parse().ok());
        self.state = match (status, chunked, length) {
            (100, ..) => State::Head,
            (_, true, _) => State::Size,
            (_, false, Some(0)) => State::Done,
            (_, false, Some(length)) => State::Whole(length),
            (_, false, None) => return Err(Bad("an answer without a length")),
        };
        if status != 100 {
            self.status = status;
        }
        self.line.clear();
        Ok(rest)
    }

    fn size<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Bad> {
        let (over, rest) = self.until_newline(bytes)?;
        if over {
            let text = std::str::from_utf8(&self.line).unwrap_or_default();
            let digits = text.trim_end().split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(digits, 16).map_err(|_| Bad("a chunk without a size"))?;
            self.state = if size == 0 { State::Trailer } else { State::Chunk(size) };
            self.line.clear();
        }
        Ok(rest)
    }

    fn trailer<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Bad> {
        let (over, rest) = self.until_newline(bytes)?;
        if over {
            if self.line == b"\r\n" {
                self.state = State::Done;
            }
            self.line.clear();
        }
        Ok(rest)
    }

    fn take(&mut self, payload: &[u8]) {
        const START: &[u8] = b"\ndata:";
        // An event's line begins an answer, or follows a newline.
        if self.events == 0 && self.matched == 0 {
            self.matched = 1;
        }
        for byte in payload {
            if *byte == START[self.matched] {
                self.matched += 1;
            } else {
                self.matched = usize::from(*byte == b'\n');
            }
            if self.matched == START.len() {
                self.events += 1;
                self.matched = 0;
            }
        }
        let keep = payload.len().min(self.last.len());
        self.last.rotate_left(keep);
        let at = self.last.len() - keep;
        self.last[at..].copy_from_slice(&payload[payload.len() - keep..]);
        if !self.text && self.payload.len() < LIMIT {
            self.payload.extend_from_slice(payload);
            self.text = TEXT.iter().any(|key| has_text(&self.payload, key));
            if self.text {
                self.payload = Vec::new();
            }
        }
    }
}

/// Whether a string that is not empty follows the key somewhere.
fn has_text(payload: &[u8], key: &[u8]) -> bool {
    payload.windows(key.len()).enumerate().filter(|(_, window)| *window == key).any(|(at, _)| {
        let value: Vec<u8> = payload[at + key.len()..].iter().copied().skip_while(|byte| *byte == b' ').take(2).collect();
        value.len() == 2 && value[0] == b'"' && value[1] != b'"'
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        24\r\ndata: {\"delta\":{\"content\":\"\"}}\n\ndata\r\n1c\r\n: {\"delta\":{\"content\": \"a\"}}\r\nc;x=y\r\n\n\ndata: [DON\r\n4\r\nE]\n\n\r\n0\r\nx: y\r\n\r\n";

    fn read(text: &str, step: usize) -> Answer {
        let mut answer = Answer::default();
        text.as_bytes().chunks(step).for_each(|bytes| answer.feed(bytes).unwrap());
        answer
    }

    #[test]
    fn a_stream_in_pieces_of_any_size() {
        for step in [1, 2, 3, 7, 1000] {
            let answer = read(STREAM, step);
            assert!(answer.is_finished_stream(), "{step}");
            assert_eq!((answer.events, answer.text, answer.status), (3, true, 200), "{step}");
        }
    }

    #[test]
    fn an_empty_text_is_none() {
        let cut = STREAM.find("1c\r\n").unwrap();
        let answer = read(&STREAM[..cut], 1000);
        assert_eq!((answer.events, answer.text, answer.is_whole()), (1, false, false));
        assert!(read(&STREAM[..cut + 30], 1000).text);
    }

    #[test]
    fn errors_are_whole_answers() {
        let answer = read("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}", 5);
        assert_eq!((answer.is_whole(), answer.is_finished_stream(), answer.status), (true, false, 400));
        let mut answer = Answer::default();
        assert_eq!(answer.feed(b"HTTP/1.1 200 OK\r\n\r\n"), Err(Bad("an answer without a length")));
    }
}
