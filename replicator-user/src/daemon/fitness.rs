//! Whether kernel and interfaces are fit, before anything is changed.

use super::DaemonError;
use crate::{
    config::Config,
    host::{
        Netlink,
        kernel::Kernel,
        needs::{self, Check, State},
        origin::Origin,
        preflight::{self, Role, Severity},
    },
};

/// Everything that the kernel lacks, at once.
pub(super) fn kernel() -> Result<(), DaemonError> {
    let lacking = |check: &Check| check.needed && check.state == State::Missing;
    let reasons = needs::of(&Kernel::read()).into_iter().filter(lacking);
    let reasons: Vec<_> =
        reasons.map(|check| format!("missing: {} ({})", check.name, check.detail)).collect();
    if reasons.is_empty() { Ok(()) } else { Err(DaemonError::Unfit(reasons)) }
}

/// Every reason why an interface is not fit, at once.
pub(super) async fn interfaces(
    netlink: &Netlink,
    config: &Config,
    origin: Option<&Origin>,
    own: &[u32],
    mut advise: impl FnMut(String),
) -> Result<(), DaemonError> {
    let mut reasons = Vec::new();
    let configured = config.interfaces.iter().map(|name| (name.as_str(), Role::Both));
    let origin = origin.map(|origin| (origin.peer_name.as_str(), Role::Ingress));
    for (name, role) in configured.chain(origin) {
        let facts = preflight::examine(netlink, name).await?;
        for problem in preflight::verdict(name, facts.as_ref(), config.mode, role, own) {
            match problem.severity {
                Severity::Error => reasons.push(problem.text),
                Severity::Warning => advise(problem.text),
            }
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(DaemonError::Unfit(reasons)) }
}
