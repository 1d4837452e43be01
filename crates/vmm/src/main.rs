//! `bulkhead-vmm`: one micro-VM. Started by `uvm`, which drives it over the socket that is its standard input; not meant to be
//! started by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == "--version") {
        println!("bulkhead-vmm {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    // A thread that is gone would leave half a machine.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    match vmm::serve(std::io::stdin()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-vmm: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}
