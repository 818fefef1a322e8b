// RWKV-7 in float32: one expression per named tensor, in the order of the paper (arXiv 2503.14456).
//
// Letters: T tokens, V vocabulary, C width, L layers, H heads, N head size (C = H N), F inner width of the channel mix.
// All arrays are flat and row-major: (T, C) has token t's channel c at t * C + c. Sums run in JavaScript's own float64,
// every tensor is rounded to float32 when it is stored.

const DECAY_SCALE = Math.exp(-0.5); // the decay lies above exp(-DECAY_SCALE) = 0.5452
const LN_EPS = 1e-5;
const GROUP_NORM_EPS = 64e-5; // 1e-5 * 8^2; does not scale with N
const KEY_NORM_FLOOR = 1e-12; // a floor of the norm, not a term under the root

const TIME_MIX =
  "ln1 shift xr xw xk xv xa xg r w_lora w_raw w k_raw kk a_lora a k v_raw v_lora v g_lora g state y ln_x bonus out res";
const CHANNEL_MIX = "ln2 shift xk k act out res";

/** The tensors that can be traced, in the order of evaluation; `*` stands for a layer. Layer 0 has no v_lora. */
export const NAMES = [
  ...["emb", "ln0"],
  ...TIME_MIX.split(" ").map((name) => `blocks.*.att.${name}`),
  ...CHANNEL_MIX.split(" ").map((name) => `blocks.*.ffn.${name}`),
  ...["ln_out", "head"],
];

/** Mistakes that can be switched on, to see what a validation says about them. */
export const BUGS = {
  "mix-order": "the six mixes are taken in the order r k v w a g",
  "decay-sigmoid": "the decay is a bare sigmoid",
  "key-not-normalised": "the removal key keeps its length",
  silu: "SiLU in the place of the squared ReLU",
};

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** An array of n numbers, each computed from its index. */
function each(n, f) {
  const z = new Float32Array(n);
  for (let i = 0; i < n; i++) z[i] = f(i);
  return z;
}

/** x (T, I) times a matrix (O, I) -> (T, O). Four tokens share one pass over a row; one token alone is summed in four lanes. */
function linear(x, W, T) {
  const I = x.length / T;
  const O = W.length / I;
  const z = new Float32Array(T * O);
  for (let o = 0; o < O; o++) {
    const row = o * I;
    let t = 0;
    for (; t + 4 <= T; t += 4) {
      const at = t * I;
      let a = 0, b = 0, c = 0, d = 0; // prettier-ignore
      for (let i = 0; i < I; i++) {
        const weight = W[row + i];
        a += weight * x[at + i];
        b += weight * x[at + I + i];
        c += weight * x[at + 2 * I + i];
        d += weight * x[at + 3 * I + i];
      }
      z[t * O + o] = a;
      z[(t + 1) * O + o] = b;
      z[(t + 2) * O + o] = c;
      z[(t + 3) * O + o] = d;
    }
    for (; t < T; t++) z[t * O + o] = dot(W, row, x, t * I, I);
  }
  return z;
}

function dot(W, row, x, at, I) {
  let a = 0, b = 0, c = 0, d = 0; // prettier-ignore
  let i = 0;
  for (; i + 4 <= I; i += 4) {
    a += W[row + i] * x[at + i];
    b += W[row + i + 1] * x[at + i + 1];
    c += W[row + i + 2] * x[at + i + 2];
    d += W[row + i + 3] * x[at + i + 3];
  }
  for (; i < I; i++) a += W[row + i] * x[at + i];
  return a + b + (c + d);
}

/** Normalises every group of `size` numbers; weight and bias run over `weight.length` channels. */
function norm(x, { weight, bias }, size, eps) {
  const z = new Float32Array(x.length);
  const C = weight.length;
  for (let at = 0; at < x.length; at += size) {
    let sum = 0, squares = 0; // prettier-ignore
    for (let i = at; i < at + size; i++) sum += x[i];
    const mean = sum / size;
    for (let i = at; i < at + size; i++) squares += (x[i] - mean) ** 2;
    const scale = 1 / Math.sqrt(squares / size + eps);
    for (let i = at; i < at + size; i++) z[i] = (x[i] - mean) * scale * weight[i % C] + bias[i % C];
  }
  return z;
}

/** x one token earlier, (T, C): row 0 is what the call before left behind. */
function shifted(x, before) {
  const z = new Float32Array(x.length);
  z.set(before);
  z.set(x.subarray(0, x.length - before.length), before.length);
  return z;
}

/** Token shift: `share` (C) is the part of the previous token. */
function lerp(x, previous, share) {
  return each(x.length, (i) => x[i] + (previous[i] - x[i]) * share[i % share.length]);
}

/** (rows, columns) -> (columns, rows). */
function transposed(data, columns) {
  const rows = data.length / columns;
  return each(data.length, (i) => data[(i % rows) * columns + Math.floor(i / rows)]);
}

/** What the tokens so far have left behind: att and ffn (L, C), wkv (L, H, N value, N key). A value: nothing writes to it. */
export class State {
  constructor(L, C, N) {
    this.att = new Float32Array(L * C);
    this.wkv = new Float32Array(L * C * N);
    this.ffn = new Float32Array(L * C);
  }

  copy() {
    return Object.assign(Object.create(State.prototype), {
      att: this.att.slice(),
      wkv: this.wkv.slice(),
      ffn: this.ffn.slice(),
    });
  }
}

export class Model {
  /**
   * @param {Map<string, {shape: number[], data: Float32Array}>} tensors under the official names.
   * @param {string} bug one of BUGS, or empty.
   */
  constructor(tensors, bug = "") {
    this.tensors = tensors;
    this.bug = bug;
    [this.V, this.C] = this.shape("emb.weight");
    [this.H, this.N] = this.shape("blocks.0.att.r_k");
    [this.F] = this.shape("blocks.0.ffn.key.weight");
    this.L = 1 + Math.max(...[...tensors.keys()].map((name) => Number(/^blocks\.(\d+)\./.exec(name)?.[1] ?? 0)));
    this.blocks = Array.from({ length: this.L }, (_, i) => this.block(i));
    this.outer = { ln0: this.normOf("blocks.0.ln0"), ln_out: this.normOf("ln_out") };
  }

  shape(name) {
    const tensor = this.tensors.get(name);
    if (!tensor) throw new Error(`the checkpoint has no tensor ${name}, which RWKV-7 needs`);
    return tensor.shape;
  }

  data(name) {
    this.shape(name);
    return this.tensors.get(name).data;
  }

  normOf(name) {
    return { weight: this.data(`${name}.weight`), bias: this.data(`${name}.bias`) };
  }

  /** The weights of a layer. Low-rank pairs are stored (in, out), matrices (out, in): pairs are turned once, here. */
  block(i) {
    const at = `blocks.${i}.`;
    const names = "x_r x_w x_k x_v x_a x_g w0 a0 k_k k_a r_k".split(" ").concat(i ? ["v0"] : []);
    const pairs = "w1 w2 a1 a2 g1 g2".split(" ").concat(i ? ["v1", "v2"] : []); // layer 0 has no value residual
    const turned = (name) => transposed(this.data(name), this.shape(name).at(-1));
    return {
      ...Object.fromEntries(names.map((name) => [name, this.data(`${at}att.${name}`)])),
      ...Object.fromEntries(pairs.map((name) => [name, turned(`${at}att.${name}`)])),
      ...Object.fromEntries(["ln1", "ln2", "att.ln_x"].map((name) => [name.replace("att.", ""), this.normOf(at + name)])),
      receptance: this.data(`${at}att.receptance.weight`),
      key: this.data(`${at}att.key.weight`),
      value: this.data(`${at}att.value.weight`),
      output: this.data(`${at}att.output.weight`),
      ffn: { x_k: this.data(`${at}ffn.x_k`), key: this.data(`${at}ffn.key.weight`), value: this.data(`${at}ffn.value.weight`) },
    };
  }

  zero() {
    return new State(this.L, this.C, this.N);
  }

  /**
   * Feeds tokens after a state, layer by layer, all tokens of a layer at once.
   *
   * @param {number[]} tokens at least one.
   * @param {State} before left as it is.
   * @param {{logits?: "none" | "last" | "all", wants?: (name: string) => boolean}} [want] `wants` chooses tensors to trace.
   * @returns {{logits: Float32Array | null, state: State, trace: Map<string, {shape: number[], data: Float32Array}>}}
   */
  forward(tokens, before, { logits = "last", wants = () => false } = {}) {
    const { C, V } = this;
    const T = tokens.length;
    const trace = new Map();
    const keeper = (prefix) => (name, data, shape = [T, data.length / T]) => {
      if (wants(prefix + name)) trace.set(prefix + name, { shape, data });
      return data;
    };
    const run = { T, state: before.copy(), vFirst: null, keeper, wants };
    const keep = keeper("");
    const table = this.data("emb.weight");
    const emb = keep("emb", each(T * C, (i) => table[tokens[Math.floor(i / C)] * C + (i % C)]));
    let x = keep("ln0", norm(emb, this.outer.ln0, C, LN_EPS));
    for (let i = 0; i < this.L; i++) x = this.channelMix(i, this.timeMix(i, x, run), run);

    const last = logits !== "all" && !wants("ln_out") && !wants("head");
    const rows = last ? 1 : T;
    const out = keep("ln_out", norm(x.subarray((T - rows) * C), this.outer.ln_out, C, LN_EPS));
    if (logits === "none" && !wants("head")) return { logits: null, state: run.state, trace };
    const head = keep("head", linear(out, this.data("head.weight"), rows));
    return { logits: logits === "none" ? null : logits === "last" ? head.slice(-V) : head, state: run.state, trace };
  }

  timeMix(i, x, run) {
    const { C, N } = this;
    const { T, state } = run;
    const z = this.blocks[i];
    const n = T * C;
    const keep = run.keeper(`blocks.${i}.att.`);

    const ln1 = keep("ln1", norm(x, z.ln1, C, LN_EPS));
    const left = state.att.subarray(i * C, (i + 1) * C);
    const shift = keep("shift", shifted(ln1, left));
    left.set(ln1.subarray(n - C));
    const order = this.bug === "mix-order" ? "rvwkag" : "rwkvag";
    const [xr, xw, xk, xv, xa, xg] = [..."rwkvag"].map((j, at) => keep(`x${j}`, lerp(ln1, shift, z[`x_${order[at]}`])));

    const r = keep("r", linear(xr, z.receptance, T));
    const w_lora = keep("w_lora", linear(xw, z.w1, T).map(Math.tanh));
    const w_raw = keep("w_raw", linear(w_lora, z.w2, T));
    const decay = this.bug === "decay-sigmoid" ? sigmoid : (s) => Math.exp(-DECAY_SCALE * sigmoid(s));
    const w = keep("w", each(n, (j) => decay(z.w0[j % C] + w_raw[j])));
    const k_raw = keep("k_raw", linear(xk, z.key, T));
    const kk = keep("kk", this.unit(each(n, (j) => k_raw[j] * z.k_k[j % C])));
    const a_lora = keep("a_lora", linear(xa, z.a1, T)); // nothing in the middle
    const a_raw = linear(a_lora, z.a2, T);
    const a = keep("a", each(n, (j) => sigmoid(z.a0[j % C] + a_raw[j]))); // in-context learning rate
    const k = keep("k", each(n, (j) => k_raw[j] * (1 + (a[j] - 1) * z.k_a[j % C])));
    const v = this.value(i, keep("v_raw", linear(xv, z.value, T)), xv, run, keep);
    const g_lora = keep("g_lora", linear(xg, z.g1, T).map(sigmoid));
    const g = keep("g", linear(g_lora, z.g2, T));

    const y = keep("y", this.recurrence(i, { r, w, k, v, kk, a }, run, keep));
    const ln_x = keep("ln_x", norm(y, z.ln_x, N, GROUP_NORM_EPS)); // one group a head
    const bonus = keep("bonus", this.bonus(r, k, v, z.r_k));
    const out = keep("out", linear(each(n, (j) => (ln_x[j] + bonus[j]) * g[j]), z.output, T));
    return keep("res", each(n, (j) => x[j] + out[j]));
  }

  /** Every head of every token divided by its Euclidean norm. */
  unit(kappa) {
    const { N } = this;
    const squares = new Float64Array(kappa.length / N);
    for (let j = 0; j < kappa.length; j++) squares[Math.floor(j / N)] += kappa[j] ** 2;
    if (this.bug === "key-not-normalised") return kappa;
    return each(kappa.length, (j) => kappa[j] / Math.max(Math.sqrt(squares[Math.floor(j / N)]), KEY_NORM_FLOOR));
  }

  /** The value residual: later layers move towards layer 0's value. */
  value(i, v_raw, xv, run, keep) {
    if (i === 0) return (run.vFirst = keep("v", v_raw));
    const { v0, v1, v2 } = this.blocks[i];
    const s = linear(keep("v_lora", linear(xv, v1, run.T)), v2, run.T);
    const share = (j) => sigmoid(v0[j % this.C] + s[j]);
    return keep("v", each(v_raw.length, (j) => v_raw[j] + (run.vFirst[j] - v_raw[j]) * share(j)));
  }

  /** S' = S (diag(w) - kk (kk a)^T) + v k^T, y = S' r; the only part that walks over time. */
  recurrence(i, { r, w, k, v, kk, a }, run, keep) {
    const { C, H, N } = this;
    const { T, state } = run;
    const name = `blocks.${i}.att.state`;
    const seen = run.wants(name) ? new Float32Array(T * C * N) : null;
    const S = state.wkv.subarray(i * C * N, (i + 1) * C * N); // (H, N value, N key)
    const y = new Float32Array(T * C);
    for (let t = 0; t < T; t++) {
      for (let row = 0; row < C; row++) { // a head's value channel
        const key = t * C + row - (row % N); // where this head's keys begin
        const at = row * N;
        let removed = 0, read = 0; // prettier-ignore
        for (let n = 0; n < N; n++) removed += S[at + n] * kk[key + n];
        for (let n = 0; n < N; n++) {
          const j = key + n;
          S[at + n] = S[at + n] * w[j] - removed * kk[j] * a[j] + v[t * C + row] * k[j];
          read += S[at + n] * r[j]; // the state after it was written
        }
        y[t * C + row] = read;
      }
      seen?.set(S, t * C * N);
    }
    if (seen) keep("state", seen, [T, H, N, N]);
    return y;
  }

  /** Per head (sum of r k r_k) v: modified key, mixed value. */
  bonus(r, k, v, r_k) {
    const { C, N } = this;
    const weight = new Float64Array(v.length / N);
    for (let j = 0; j < v.length; j++) weight[Math.floor(j / N)] += r[j] * k[j] * r_k[j % C];
    return each(v.length, (j) => weight[Math.floor(j / N)] * v[j]);
  }

  channelMix(i, x, run) {
    const { C } = this;
    const { T, state } = run;
    const z = this.blocks[i];
    const keep = run.keeper(`blocks.${i}.ffn.`);
    const ln2 = keep("ln2", norm(x, z.ln2, C, LN_EPS));
    const left = state.ffn.subarray(i * C, (i + 1) * C);
    const shift = keep("shift", shifted(ln2, left));
    left.set(ln2.subarray((T - 1) * C));
    const k = keep("k", linear(keep("xk", lerp(ln2, shift, z.ffn.x_k)), z.ffn.key, T));
    const act = keep("act", k.map(this.bug === "silu" ? (s) => s * sigmoid(s) : (s) => Math.max(s, 0) ** 2));
    const out = keep("out", linear(act, z.ffn.value, T));
    return keep("res", each(x.length, (j) => x[j] + out[j]));
  }
}
