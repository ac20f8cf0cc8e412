//! How far a run is: a line that is written over on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

use super::report::grouped;

/// Between two updates on a terminal.
const TERMINAL: Duration = Duration::from_millis(100);

/// Between two lines elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(2);

/// Columns of the bar.
const BAR: usize = 30;

/// Shows how many of the tokens were dispatched.
pub(super) struct Progress {
    tokens: usize,
    terminal: bool,
    start: Instant,
    next: Instant,
}

impl Progress {
    /// None were yet.
    pub(super) fn new(tokens: usize) -> Self {
        let (start, terminal) = (Instant::now(), stderr().is_terminal());
        Self { tokens, terminal, start, next: start + interval(terminal) }
    }

    /// `done` tokens were dispatched, the last of them by a table of `epoch`, and `arrived` copies received.
    pub(super) fn show(&mut self, done: usize, epoch: u16, arrived: u64) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + interval(self.terminal);
        let rate = arrived as f64 / (now - self.start).as_secs_f64().max(0.001);
        let numbers = format!(
            "{} of {} tokens, epoch {epoch}, {} copies received, {} a second",
            grouped(done as u64),
            grouped(self.tokens as u64),
            grouped(arrived),
            grouped(rate as u64)
        );
        // Nothing is lost but the sight of it where standard error is closed.
        let _ = if self.terminal {
            let full = BAR * done / self.tokens.max(1);
            write!(stderr(), "\r[{:<BAR$}] {numbers}\x1b[K", "#".repeat(full))
        } else {
            writeln!(stderr(), "{numbers}")
        };
    }

    /// Takes the line off the terminal.
    pub(super) fn finish(self) {
        if self.terminal {
            // As above.
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn interval(terminal: bool) -> Duration {
    if terminal { TERMINAL } else { ELSEWHERE }
}
