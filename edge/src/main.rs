//! `gemba-edge`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gemba_edge::cli::main()
}
