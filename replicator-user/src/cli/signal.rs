//! How a command that runs until Ctrl-C learns of it.

use std::sync::{Arc, atomic::AtomicBool};

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};

/// A flag that SIGINT and SIGTERM set. The second signal ends the program at once.
pub(super) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let at_once =
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop));
        let first = signal_hook::flag::register(signal, Arc::clone(&stop));
        at_once.and(first).with_context(|| format!("cannot handle signal {signal}"))?;
    }
    Ok(stop)
}
