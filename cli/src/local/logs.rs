//! The output of child processes: cut into lines of bounded length, shown with a prefix or kept for the error message.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::output::Console;

/// Longest line that is shown; the rest of a longer one is left out.
const LONGEST: usize = 4096;
/// Lines that are kept of each process: enough to see why it died.
const KEPT: usize = 20;

/// What happens to the lines of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LineSink {
    name: String,
    index: usize,
    console: Option<Console>,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl LineSink {
    /// Keeps the last lines of `name`, and shows every line where a console is given; `index` picks the colour.
    pub fn new(name: String, index: usize, console: Option<Console>) -> Self {
        Self { name, index, console, tail: Arc::default() }
    }

    /// The last lines, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Reads until the end of the stream.
    pub async fn read(self, stream: impl AsyncRead + Unpin) {
        let mut reader = BufReader::new(stream);
        let mut lines = LineBuffer::default();
        while let Ok(bytes) = reader.fill_buf().await
            && !bytes.is_empty()
        {
            let used = bytes.len();
            lines.push(bytes, |line| self.accept(line));
            reader.consume(used);
        }
        lines.finish(|line| self.accept(line));
    }

    fn accept(&self, line: &str) {
        if let Some(console) = &self.console {
            console.process_line(&self.name, self.index, line);
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == KEPT {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
    }
}

/// Cuts bytes into lines of at most [`LONGEST`] bytes.
#[derive(Debug, Default)]
struct LineBuffer {
    line: Vec<u8>,
    cut: bool,
}

impl LineBuffer {
    fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(&str)) {
        let mut parts = bytes.split(|&byte| byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            let room = LONGEST - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            self.cut |= part.len() > room;
            if parts.peek().is_some() {
                self.end(&mut emit);
            }
        }
    }

    fn finish(&mut self, mut emit: impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.end(&mut emit);
        }
    }

    fn end(&mut self, emit: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end();
        match self.cut {
            true => emit(&format!("{text} [cut]")),
            false => emit(text),
        }
        self.line.clear();
        self.cut = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let (mut buffer, mut lines) = (LineBuffer::default(), Vec::new());
        for chunk in chunks {
            buffer.push(chunk, |line| lines.push(line.to_owned()));
        }
        buffer.finish(|line| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn lines_end_where_the_newline_is() {
        assert_eq!(cut(&[b"a\nb", b"c\r\n\nlast"]), ["a", "bc", "", "last"]);
        assert_eq!(cut(&[b"\xff\n"]), ["\u{fffd}"]);
    }

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let lines = cut(&[&[b'x'; 5000], &[b'y'; 10], b"\nnext\n"]);
        assert_eq!(lines[0].len(), LONGEST + " [cut]".len());
        assert!(lines[0].ends_with("x [cut]"));
        assert_eq!(lines[1], "next");
    }

    #[tokio::test]
    async fn the_last_lines_are_kept() {
        let sink = LineSink::new("pod 0".into(), 0, None);
        let text: String = (0..30).map(|i| format!("{i}\n")).collect();
        sink.clone().read(text.as_bytes()).await;
        assert_eq!(sink.tail().len(), KEPT);
        assert_eq!(sink.tail()[0], "10");
    }
}
