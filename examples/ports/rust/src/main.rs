//! A port of RWKV-7 to Rust's standard library alone, which the harness can judge in two ways.
//!
//!     rwkv7 [--bug NAME]                         speaks the protocol on stdin and stdout
//!     rwkv7 --kit DIR --dump OUT [--bug NAME]    computes a kit's prompt and writes a dump

mod base64;
mod json;
mod kit;
mod math;
mod model;
mod protocol;
mod safetensors;
mod trace;
mod weights;

use model::{Bug, BUGS};
use std::path::Path;
use std::process::ExitCode;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const USAGE: u8 = 2;

#[derive(Default)]
struct Options {
    kit: String,
    dump: String,
    bug: String,
}

fn parsed() -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let slot = match argument.as_str() {
            "--kit" => &mut options.kit,
            "--dump" => &mut options.dump,
            "--bug" => &mut options.bug,
            _ => return Err(format!("unknown argument {argument}; there are --kit DIR, --dump OUT, --bug NAME")),
        };
        *slot = arguments.next().ok_or_else(|| format!("{argument} takes a value"))?;
    }
    if options.kit.is_empty() != options.dump.is_empty() {
        return Err("--kit DIR and --dump OUT go together".into());
    }
    Ok(options)
}

fn bug(name: &str) -> Result<Bug, String> {
    if name.is_empty() {
        return Ok(Bug::None);
    }
    let found = BUGS.iter().find_map(|(known, bug)| (*known == name).then_some(*bug));
    found.ok_or_else(|| format!("no bug {name}; there are {}", BUGS.map(|(known, _)| known).join(", ")))
}

fn run() -> Result<(), String> {
    let options = parsed()?;
    let bug = bug(&options.bug)?;
    if options.kit.is_empty() {
        return protocol::serve(VERSION, (options.bug, bug));
    }
    let program = format!("rwkv7-rs {VERSION}");
    kit::run(Path::new(&options.kit), Path::new(&options.dump), &program, bug)
}

fn main() -> ExitCode {
    run().map_or_else(
        |message| {
            eprintln!("rwkv7: {message}");
            ExitCode::from(USAGE)
        },
        |()| ExitCode::SUCCESS,
    )
}
