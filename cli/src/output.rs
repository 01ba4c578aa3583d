//! What the user sees beside results: notices, the lines of child processes, tables. Owns stderr.
//!
//! One thread writes; everybody else hands lines to it through a bounded queue. A reader of stderr that stands still
//! therefore costs lines (counted, and said once it reads again), never the supervision of the processes.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressDrawTarget};

/// Lines that wait for the writer: some seconds of the noisiest log.
const QUEUE: usize = 4096;
/// How long [`Console::flush`] waits for a reader that stands still.
const FLUSH: Duration = Duration::from_secs(1);
/// Colours of processes, in turn: cyan, yellow, green, magenta, blue.
const PALETTE: [u8; 5] = [36, 33, 32, 35, 34];

enum Message {
    Line(String),
    Flush(SyncSender<()>),
}

/// Stderr as this program uses it. Cheap to clone.
#[derive(Clone)]
pub struct Console {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    bars: MultiProgress,
    terminal: bool,
    colour: bool,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

impl Console {
    /// The process's stderr; coloured on a terminal unless `NO_COLOR` is set.
    pub fn stderr() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let bars =
            MultiProgress::with_draw_target(if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let (count, above) = (dropped.clone(), bars.clone());
        std::thread::spawn(move || write_lines(&lines, &count, &above));
        Self { queue, dropped, bars, terminal, colour }
    }

    /// Whether stderr is a terminal, where progress is drawn instead of told.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Where progress bars are added, so that lines go above them.
    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// One notice of m1ctl itself.
    pub fn say(&self, text: impl fmt::Display) {
        self.line(format!("m1ctl: {text}"));
    }

    /// Text as it is: a table.
    pub fn block(&self, text: impl fmt::Display) {
        self.line(text.to_string().trim_end().to_owned());
    }

    /// One line of the child process `name`; `index` picks its colour.
    pub fn process_line(&self, name: &str, index: usize, text: &str) {
        self.line(prefixed(name, self.colour.then(|| PALETTE[index % PALETTE.len()]), text));
    }

    /// Waits until everything handed over before is written, at most a second.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH);
        }
    }

    fn line(&self, text: String) {
        if self.queue.try_send(Message::Line(text)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn prefixed(name: &str, colour: Option<u8>, text: &str) -> String {
    match colour {
        Some(colour) => format!("\x1b[{colour}m{name:<6} |\x1b[0m {text}"),
        None => format!("{name:<6} | {text}"),
    }
}

fn write_lines(lines: &Receiver<Message>, dropped: &AtomicU64, above: &MultiProgress) {
    for message in lines {
        match message {
            Message::Line(text) => above.suspend(|| {
                let mut stderr = std::io::stderr().lock();
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = writeln!(stderr, "m1ctl: {lost} lines were not shown: stderr was not read");
                }
                let _ = writeln!(stderr, "{text}");
            }),
            Message::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Columns of text, as wide as their widest cell, two spaces apart.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

/// On which side a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Names.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([self.columns[column].0.len()]).max().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| self.width(column)).collect();
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        for row in [&header].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (column, &width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let gap = if column == 0 { "" } else { "  " };
                match self.columns[column].1 {
                    Align::Left => line.extend([gap, cell, &pad]),
                    Align::Right => line.extend([gap, &pad, cell]),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("POD", Align::Left), ("BYTES", Align::Right), ("HOLDS", Align::Left)]);
        table.row(["router".into(), "1".into()]);
        table.row(["0".into(), "12.5 GB".into(), "0-15".into()]);
        assert_eq!(table.to_string(), "POD       BYTES  HOLDS\nrouter        1\n0       12.5 GB  0-15\n");
    }

    #[test]
    fn a_process_line_carries_its_name() {
        assert_eq!(prefixed("pod 0", None, "ready"), "pod 0  | ready");
        assert_eq!(prefixed("router", Some(36), "x"), "\x1b[36mrouter |\x1b[0m x");
    }
}
