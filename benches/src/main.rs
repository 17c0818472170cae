//! The program behind `cargo xtask bench relay`; see the library for what it does.

use std::process::ExitCode;

/// The allocator of the shipped server, here for every relay alike.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match ringwire_benches::command::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringwire-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}
