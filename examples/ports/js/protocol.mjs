// The harness's protocol, version 1: a request a line on stdin, an answer a line on stdout. See docs/protocol.md.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Model, NAMES } from "./model.mjs";
import { readCheckpoint } from "./safetensors.mjs";

const UNKNOWN_METHOD = -32601;
const WRONG_PARAMETERS = -32602;
const FAILED = -32000;

const INLINE = 1 << 20; // bytes; larger arrays go through a file, which is faster than base64
const BYTES = 256; // vocabulary of the models whose tokens are bytes

class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** What the methods share: the model, the states that were kept, the folder for large arrays. */
class Port {
  constructor(version, bug) {
    Object.assign(this, { version, bug, model: null, scratch: "", states: new Map(), handles: 0, files: 0 });
  }

  hello() {
    return {
      protocol: 1,
      name: "rwkv7.mjs",
      version: this.version,
      abilities: ["logits-all", "state", "trace", "generate", "tokenizer"],
      attention: "sequential, sums in float64",
      trace: NAMES,
      notes: this.bug ? [`the planted mistake ${this.bug} is switched on`] : [],
    };
  }

  load({ path, dtype, scratch }) {
    if (dtype !== "f32") throw new Refusal(WRONG_PARAMETERS, `this port computes in f32, not ${dtype}`);
    this.model = new Model(readCheckpoint(path), this.bug);
    this.scratch = scratch;
    const { V, C, L, H, N, F } = this.model;
    return { vocab_size: V, n_embd: C, n_layer: L, n_head: H, head_size: N, n_ffn: F };
  }

  forward({ tokens, state, logits, keep, trace, fetch }) {
    const asked = new Set(trace);
    const before = state === null ? this.model.zero() : this.kept(state);
    const out = this.model.forward(tokens, before, { logits, wants: (name) => asked.has(name) });
    const answer = {};
    if (out.logits && fetch) answer.logits = this.array([out.logits.length / this.model.V, this.model.V], out.logits);
    if (keep) answer.state = this.keep(out.state);
    if (trace.length) {
      const rows = [...out.trace].map(([name, { shape, data }]) => [name, this.array(shape, data)]);
      answer.trace = Object.fromEntries(rows);
    }
    return answer;
  }

  generate({ tokens, max_new_tokens, stop }) {
    const found = [];
    let state = this.model.zero();
    let fed = tokens;
    while (found.length < max_new_tokens) {
      const out = this.model.forward(fed, state);
      const best = out.logits.reduce((top, logit, id) => (logit > out.logits[top] ? id : top), 0);
      if (stop.includes(best)) break;
      found.push(best);
      state = out.state;
      fed = [best];
    }
    return { tokens: found };
  }

  release({ state }) {
    this.kept(state);
    this.states.delete(state);
    return {};
  }

  export_state({ state }) {
    const { att, wkv, ffn } = this.kept(state);
    const { L, C, H, N } = this.model;
    return {
      att_shift: this.array([L, C], att),
      wkv: this.array([L, H, N, N], wkv),
      ffn_shift: this.array([L, C], ffn),
    };
  }

  import_state({ att_shift, wkv, ffn_shift }) {
    const state = this.model.zero();
    for (const [name, array, into] of [["att_shift", att_shift, state.att], ["wkv", wkv, state.wkv], ["ffn_shift", ffn_shift, state.ffn]]) {
      const bytes = Buffer.from(array.base64, "base64");
      if (bytes.length !== into.byteLength) {
        throw new Refusal(WRONG_PARAMETERS, `${name} has ${bytes.length} bytes, where this model has ${into.byteLength}`);
      }
      new Uint8Array(into.buffer).set(bytes);
    } // prettier-ignore
    return { state: this.keep(state) };
  }

  encode({ bytes }) {
    this.checkBytes();
    return { tokens: [...Buffer.from(bytes, "base64")] };
  }

  decode({ tokens }) {
    this.checkBytes();
    return { bytes: Buffer.from(tokens).toString("base64") };
  }

  shutdown() {
    return {};
  }

  checkBytes() {
    if (this.model.V !== BYTES) throw new Refusal(FAILED, `no tokenizer for a vocabulary of ${this.model.V}: only bytes`);
  }

  keep(state) {
    this.states.set(++this.handles, state);
    return this.handles;
  }

  kept(handle) {
    const state = this.states.get(handle);
    if (!state) throw new Refusal(WRONG_PARAMETERS, `there is no state ${handle}`);
    return state;
  }

  array(shape, data) {
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    if (bytes.length <= INLINE) return { dtype: "f32", shape, base64: bytes.toString("base64") };
    const file = `array-${++this.files}.bin`;
    writeFileSync(join(this.scratch, file), bytes);
    return { dtype: "f32", shape, file, offset: 0 };
  }
}

const METHODS = new Set("hello load forward generate release export_state import_state encode decode shutdown".split(" "));

/** Answers until stdin ends or `shutdown` comes. */
export async function serve(version, bug) {
  const port = new Port(version, bug);
  const lines = createInterface({ input: process.stdin, crlfDelay: Infinity });
  for await (const line of lines) {
    const { id, method, params } = JSON.parse(line);
    process.stdout.write(JSON.stringify({ jsonrpc: "2.0", id, ...answer(port, method, params) }) + "\n");
    if (method === "shutdown") break;
  }
  lines.close();
}

function answer(port, method, params) {
  try {
    if (!METHODS.has(method)) throw new Refusal(UNKNOWN_METHOD, `there is no method ${method}`);
    if (method !== "hello" && method !== "shutdown" && method !== "load" && !port.model) {
      throw new Refusal(FAILED, `${method} before load`);
    }
    return { result: port[method](params) };
  } catch (error) {
    const code = error instanceof Refusal ? error.code : FAILED;
    return { error: { code, message: error.message } };
  }
}
