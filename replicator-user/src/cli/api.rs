//! Which daemon is asked, for the commands that ask one.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::{
    api::client::{Address, Client},
    config::DEFAULT_SOCKET,
};

/// Which daemon is asked.
#[derive(Args, Clone)]
pub(super) struct Api {
    /// The daemon's control socket, or https://HOST:PORT
    #[arg(long, value_name = "ADDRESS", default_value = DEFAULT_SOCKET)]
    api: Address,
    /// File with the token; https needs it
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the certificates to trust; https needs it
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Api {
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(self.api.clone(), self.token_file.as_deref(), self.ca.as_deref())?)
    }
}

/// Runs what waits for a daemon.
pub(super) fn block_on<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot wait for answers")?.block_on(task)
}
