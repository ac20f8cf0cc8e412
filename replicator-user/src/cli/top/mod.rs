//! `replicator top`.

mod sample;
mod screen;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    sync::{
        atomic::Ordering,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};

use super::{
    api::{Api, block_on},
    signal::stop_flag,
};
use crate::api::client::{Client, ClientError};
use sample::Sample;
use screen::View;

/// How often the daemon is asked.
const REFRESH: Duration = Duration::from_secs(1);

/// How soon a key, a signal or an answer is seen.
const POLL: Duration = Duration::from_millis(100);

/// Show rates, nodes and models on the terminal
///
/// Of the running daemon: what becomes of frames and copies each second, copies and bits for each node, and the epoch of
/// each model. Where the daemon is not there it waits for it. Keys: q quits, s sorts the nodes otherwise, p pauses.
#[derive(Args)]
pub(super) struct Top {
    #[command(flatten)]
    api: Api,
}

/// Puts the terminal back as it was.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = ratatui::try_restore();
    }
}

impl Top {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        anyhow::ensure!(
            io::stdout().is_terminal() && io::stdin().is_terminal(),
            "`replicator top` draws on a terminal; `replicator stats` prints the counts, with --json for scripts"
        );
        let client = self.api.client()?;
        let stop = stop_flag()?;
        let mut view = View { address: client.address().to_string(), ..View::default() };
        let (sender, answers) = channel();
        // It ends with the process.
        thread::spawn(move || block_on(ask(client, sender)));
        let mut screen = Screen(ratatui::try_init().context("cannot draw on the terminal")?);
        while !stop.load(Ordering::Relaxed) {
            take(&answers, &mut view);
            screen.0.draw(|frame| screen::draw(frame, &view)).context("cannot draw on the terminal")?;
            if event::poll(POLL).context("cannot read keys")?
                && let Event::Key(key) = event::read().context("cannot read keys")?
                && !press(key, &mut view)
            {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks again and again, until nobody wants to know any more.
async fn ask(client: Client, answers: Sender<Result<Sample, ClientError>>) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(REFRESH);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let sample = async {
            Ok(Sample {
                stats: client.stats().await?,
                status: client.status().await?,
                neighbors: client.neighbors().await?,
            })
        };
        if answers.send(sample.await).is_err() {
            return Ok(());
        }
    }
}

fn take(answers: &Receiver<Result<Sample, ClientError>>, view: &mut View) {
    loop {
        match answers.try_recv() {
            // Rates go on from the last sample before the pause.
            Ok(Ok(_)) if view.paused => view.trouble = None,
            Ok(Ok(sample)) => view.take(sample),
            Ok(Err(error)) => view.trouble = Some(format!("{error}; trying again")),
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => {
                view.trouble = Some("the daemon cannot be asked any more: quit and start again".to_owned());
                return;
            }
        }
    }
}

/// What a key does; false where it ends the program.
fn press(key: KeyEvent, view: &mut View) -> bool {
    if key.kind != KeyEventKind::Press {
        return true;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        // In raw mode Ctrl-C is a key.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('s') => view.sort = view.sort.next(),
        KeyCode::Char('p') | KeyCode::Char(' ') => view.paused = !view.paused,
        _ => {}
    }
    true
}
