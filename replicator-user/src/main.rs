//! The command `replicator`.

use std::process::ExitCode;

fn main() -> ExitCode {
    replicator_user::cli::main()
}
