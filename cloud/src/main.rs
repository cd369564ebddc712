//! `gemba-cloud`: see `gemba_cloud::cli`.

use std::process::ExitCode;

/// Measured while supervisors ask: half of the memory that the system's allocator keeps, and a tenth less time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    gemba_cloud::cli::main()
}
