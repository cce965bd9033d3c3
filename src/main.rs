//! The `outpost` program: arguments in, exit code out. Everything else is the library's.

use std::process::ExitCode;

/// A message makes a few hundred small allocations, and hands them from thread to thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    outpost::cli::main(std::env::args_os())
}
