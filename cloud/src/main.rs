//! `gemba-cloud`: see `gemba_cloud::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    gemba_cloud::cli::main()
}
