//! Computes a kit's prompt and writes what came out as a dump: a manifest beside one file of raw numbers.

use crate::json::{listed, quoted, Json};
use crate::model::{Bug, Logits, Model, Sizes, State};
use crate::safetensors;
use crate::trace::{Named, Trace};
use std::fs;
use std::path::Path;

/// `kit` is the folder that `python -m harness kit` wrote; `python -m harness compare KIT DUMP` judges `dump`.
pub fn run(kit: &Path, dump: &Path, program: &str, bug: Bug) -> Result<(), String> {
    let manifest = kit.join("manifest.json");
    let text = fs::read_to_string(&manifest).map_err(|error| format!("{}: {error}", manifest.display()))?;
    let facts = Json::parse(&text)?;
    let checkpoint = kit.join(facts.get("checkpoint")?.text()?);
    let model = Model::new(safetensors::read(&checkpoint.to_string_lossy())?, bug)?;
    let tokens = facts.get("tokens")?.integers()?;
    let (mut state, mut at, mut found) = (model.zero(), 0, Vec::new());
    for size in facts.get("calls")?.integers()? {
        let mut trace = Trace { wanted: &|_| true, found: Vec::new() };
        model.forward(&tokens[at..at + size], &mut state, Logits::All, &mut trace);
        at += size;
        join(&mut found, trace.found);
    }
    found.extend(parts(&model.sizes, state));
    write(dump, program, &tokens, &found).map_err(|error| format!("{}: {error}", dump.display()))
}

/// The rows of a later call behind those of the earlier ones.
fn join(all: &mut Vec<Named>, later: Vec<Named>) {
    if all.is_empty() {
        all.extend(later);
        return;
    }
    for (tensor, more) in all.iter_mut().zip(later) {
        tensor.shape[0] += more.shape[0];
        tensor.data.extend(more.data);
    }
}

fn parts(sizes: &Sizes, state: State) -> [Named; 3] {
    let named = |(name, shape, data): (&str, _, _)| Named { name: format!("state.{name}"), shape, data };
    state.parts(sizes).map(named)
}

fn write(dump: &Path, program: &str, tokens: &[usize], found: &[Named]) -> std::io::Result<()> {
    let (mut raw, mut rows) = (Vec::new(), Vec::new());
    for Named { name, shape, data } in found {
        let name = if name == "head" { "logits" } else { name };
        let (shape, offset) = (listed(shape), raw.len());
        rows.push(format!(
            r#"{{"name":{},"shape":{shape},"dtype":"f32","file":"dump.bin","offset":{offset}}}"#,
            quoted(name)
        ));
        raw.extend(data.iter().flat_map(|number| number.to_le_bytes()));
    }
    let (program, tokens, rows) = (quoted(program), listed(tokens), listed(rows));
    fs::create_dir_all(dump)?;
    fs::write(dump.join("dump.bin"), raw)?;
    let manifest = format!(r#"{{"dump":1,"program":{program},"dtype":"f32","tokens":{tokens},"tensors":{rows}}}"#);
    fs::write(dump.join("manifest.json"), manifest + "\n")
}
