//! The `ringwire` program. Everything is in the library; here are only the allocator and the exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Returns memory of idle connections, and is fast for small objects of mixed lifetimes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ringwire::cli::main()
}
