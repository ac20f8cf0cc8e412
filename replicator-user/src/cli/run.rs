//! `replicator run`.

use std::{path::PathBuf, process::ExitCode};

use crate::{config, daemon::Daemon};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Load the datapath and keep it in step with this host
///
/// Checks every interface first and says exactly what is wrong. When it is told to end (SIGTERM, Ctrl-C) the datapath
/// stays in place and goes on replicating with what is known then: `replicator detach` takes it down. Another `run`
/// takes over what the last one left.
#[derive(Args)]
pub(super) struct Run {
    /// The configuration; see configs/ and docs/configuration.md
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Take the datapath down at the end
    #[arg(long)]
    detach_on_exit: bool,
    /// How to log; RUST_LOG chooses what (for example: debug)
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        log_to_stderr(self.log_format);
        let config = config::load(&self.config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.follow(config))
    }

    async fn follow(self, config: config::Config) -> anyhow::Result<ExitCode> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let end = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tokio::pin!(end);
        let Some(mut daemon) = Daemon::start(config, &mut end).await? else {
            info!("ended before it had started; everything is as it was");
            return Ok(ExitCode::SUCCESS);
        };
        let summary = daemon.summary();
        info!("replicating: {summary}");
        // Without a service manager there is nobody to tell.
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&summary)]);
        daemon.run(end).await;
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        if self.detach_on_exit {
            daemon.detach().await?;
            info!("detached");
        } else {
            info!("ended; the datapath stays in place, `replicator detach` takes it down");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let color = terminal && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(color);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
