// Computes a kit's prompt and writes what came out as a dump: a manifest beside one file of raw numbers.

import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { Model } from "./model.mjs";
import { readCheckpoint } from "./safetensors.mjs";

/**
 * @param {string} kit the folder that `python -m harness kit` wrote.
 * @param {string} dump the folder to write; `python -m harness compare KIT DUMP` judges it.
 * @param {string} program what the dump says it is from.
 * @param {string} bug one of model.mjs's BUGS, or empty.
 */
export function runKit(kit, dump, program, bug) {
  const facts = JSON.parse(readFileSync(join(kit, "manifest.json"), "utf8"));
  const model = new Model(readCheckpoint(join(kit, facts.checkpoint)), bug);
  const wants = { logits: "all", wants: () => true };
  const calls = [];
  let state = model.zero();
  let at = 0;
  for (const size of facts.calls) {
    calls.push(model.forward(facts.tokens.slice(at, at + size), state, wants));
    state = calls.at(-1).state;
    at += size;
  }
  write(dump, { dump: 1, program, dtype: "f32", tokens: facts.tokens }, [...traced(calls), ...parts(model, state)]);
}

/** Every named tensor over all calls: its name, its shape, and the pieces that it is made of. */
function traced(calls) {
  return [...calls[0].trace.keys()].map((name) => {
    const pieces = calls.map((call) => call.trace.get(name));
    const rows = pieces.reduce((sum, piece) => sum + piece.shape[0], 0);
    const shape = [rows, ...pieces[0].shape.slice(1)];
    return { name: name === "head" ? "logits" : name, shape, pieces: pieces.map((piece) => piece.data) };
  });
}

function parts({ L, C, H, N }, state) {
  return [
    { name: "state.att_shift", shape: [L, C], pieces: [state.att] },
    { name: "state.wkv", shape: [L, H, N, N], pieces: [state.wkv] },
    { name: "state.ffn_shift", shape: [L, C], pieces: [state.ffn] },
  ];
}

function write(dump, facts, tensors) {
  mkdirSync(dump, { recursive: true });
  const file = openSync(join(dump, "dump.bin"), "w");
  let offset = 0;
  const rows = tensors.map(({ name, shape, pieces }) => {
    const row = { name, shape, dtype: "f32", file: "dump.bin", offset };
    for (const piece of pieces) offset += writeSync(file, piece);
    return row;
  });
  closeSync(file);
  writeFileSync(join(dump, "manifest.json"), JSON.stringify({ ...facts, tensors: rows }));
}
