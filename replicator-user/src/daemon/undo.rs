//! What a start makes on the host, to be taken back where it does not come to its end.

use std::{fs, io, path::PathBuf};

use tracing::warn;

use super::status;
use crate::{
    config::Config,
    datapath::Pins,
    host::{Error, Netlink, link, origin},
};

/// The things that were not there before.
pub(super) struct Undo {
    pin_path: PathBuf,
    pin_path_is_new: bool,
    origin: Option<String>,
}

impl Undo {
    /// Looks before anything is made.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub(super) async fn note(netlink: &Netlink, config: &Config) -> Result<Self, Error> {
        let origin = config.origin.as_ref().map(|origin| origin.interface.as_str());
        let origin = match origin {
            Some(name) if link::named(netlink, name).await?.is_none() => Some(name.to_owned()),
            _ => None,
        };
        let pin_path = config.pin_path.clone();
        Ok(Self { pin_path_is_new: !pin_path.exists(), pin_path, origin })
    }

    /// Takes back what was made. Whoever asks has another error to tell: one in here is only logged.
    pub(super) async fn take_back(self) {
        let (path, pins) = (&self.pin_path, Pins::new(&self.pin_path));
        if self.pin_path_is_new {
            // Programs first; it may not have come to any.
            let _ = pins.remove_all();
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!("cannot remove {}: {error}", path.display());
                }
                _ => {}
            }
        } else if let Err(error) = pins.withdraw() {
            warn!("{error}");
        }
        if let Some(name) = self.origin
            && let Err(error) = remove_origin(&name).await
        {
            warn!("{error}");
        }
        // The control socket was in it.
        status::remove_folder();
    }
}

async fn remove_origin(name: &str) -> Result<(), Error> {
    origin::remove(&Netlink::open()?, name).await.map(drop)
}
