//! The program behind `cargo xtask bench` and `cargo xtask flood`; see the library for what it does.

use ringwire_benches::micro::NoValgrind;
use std::process::ExitCode;

/// The allocator of the shipped server, here for every relay alike.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The server under attack is the real one, out of the same build.
    if std::env::var_os(ringwire_benches::flood::server::AS_SERVER).is_some() {
        return ringwire::cli::main();
    }
    match ringwire_benches::command::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringwire-benches: {error:#}");
            // Not a failed check, but one that could not be made.
            if error.is::<NoValgrind>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
