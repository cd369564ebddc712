//! A release build embeds the page: it is built again when the page was. (Other builds read it from the disk.)

use std::{env, io::Write};

fn main() -> std::io::Result<()> {
    let watched = if env::var("PROFILE").as_deref() == Ok("release") { "web/dist" } else { "build.rs" };
    writeln!(std::io::stdout().lock(), "cargo::rerun-if-changed={watched}")
}
