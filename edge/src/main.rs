//! `gemba-edge`; see the library.

use std::process::ExitCode;

/// A gateway has little memory, and bursts and rolled generations leave the system's allocator with twice what is in use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    gemba_edge::cli::main()
}
