//! RWKV-7 in f32: one expression per named tensor, in the order of the paper (arXiv 2503.14456).
//!
//! Letters in comments: T tokens, C width, L layers, H heads, N head size (C = H N), F inner width of the channel mix.
//! All arrays are flat and row-major: (T, C) has token t's channel c at t * C + c.

use crate::math::{dot, each, lerp, linear, norm, shifted, sigmoid, transposed, unit, Norm};
use crate::safetensors::Tensor;
use crate::trace::{Scope, Trace};
use crate::weights::{ChannelMix, Checkpoint, TimeMix};
use std::collections::HashMap;

const DECAY_SCALE: f32 = 0.606_530_66; // exp(-1/2): the decay lies above exp(-DECAY_SCALE) = 0.5452
const LN_EPS: f64 = 1e-5;
const GROUP_NORM_EPS: f64 = 64e-5; // 1e-5 * 8^2; does not scale with N
const KEY_NORM_FLOOR: f32 = 1e-12; // a floor of the norm, not a term under the root

const TIME_MIX: &str =
    "ln1 shift xr xw xk xv xa xg r w_lora w_raw w k_raw kk a_lora a k v_raw v_lora v g_lora g state y ln_x bonus out res";
const CHANNEL_MIX: &str = "ln2 shift xk k act out res";

/// The tensors that can be traced, in the order of evaluation; `*` stands for a layer. Layer 0 has no v_lora.
pub fn names() -> Vec<String> {
    let block = |part: &str, names: &str| names.split(' ').map(|name| format!("blocks.*.{part}.{name}")).collect();
    let whole = |names: [&str; 2]| names.map(String::from).to_vec();
    [whole(["emb", "ln0"]), block("att", TIME_MIX), block("ffn", CHANNEL_MIX), whole(["ln_out", "head"])].concat()
}

/// Mistakes that can be switched on, to see what a validation says about them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    None,
    /// The group norm takes all heads together.
    OneGroup,
    /// The read-out sees the state before the token was written, as in RWKV-5 and 6.
    ReadBeforeWrite,
    /// The learning rate is missing from the removal.
    RemovalWithoutRate,
    /// The value residual reads the layer before, not layer 0.
    PreviousValue,
    /// The state is handed over from call to call with keys and values exchanged.
    StateTransposed,
}

pub const BUGS: [(&str, Bug); 5] = [
    ("one-group", Bug::OneGroup),
    ("read-before-write", Bug::ReadBeforeWrite),
    ("removal-without-rate", Bug::RemovalWithoutRate),
    ("previous-value", Bug::PreviousValue),
    ("state-transposed", Bug::StateTransposed),
];

pub struct Sizes {
    pub vocab: usize,
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub head: usize,
    pub inner: usize,
}

/// What the tokens so far have left behind.
#[derive(Clone)]
pub struct State {
    /// (L, C): the previous token's normed input of every time mix.
    pub att: Vec<f32>,
    /// (L, H, N value, N key).
    pub wkv: Vec<f32>,
    /// (L, C): the previous token's normed input of every channel mix.
    pub ffn: Vec<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    None,
    Last,
    All,
}

/// What a layer's time mix finds and leaves behind.
struct Left<'a> {
    att: &'a mut [f32],
    wkv: &'a mut [f32],
    v_first: &'a mut Option<Vec<f32>>,
}

pub struct Model {
    pub sizes: Sizes,
    bug: Bug,
    emb: Vec<f32>,
    ln0: Norm,
    blocks: Vec<(TimeMix, ChannelMix)>,
    ln_out: Norm,
    head: Vec<f32>,
}

impl State {
    /// Name, shape and numbers of every part, in the layout that all ports agree on.
    pub fn parts(self, sizes: &Sizes) -> [(&'static str, Vec<usize>, Vec<f32>); 3] {
        let &Sizes { width, layers, heads, head, .. } = sizes;
        [
            ("att_shift", vec![layers, width], self.att),
            ("wkv", vec![layers, heads, head, head], self.wkv),
            ("ffn_shift", vec![layers, width], self.ffn),
        ]
    }
}

impl Model {
    /// Takes the weights under their official names; an error names what is missing.
    pub fn new(tensors: HashMap<String, Tensor>, bug: Bug) -> Result<Model, String> {
        let layers = (0..).take_while(|i| tensors.contains_key(&format!("blocks.{i}.ln1.weight"))).count();
        let mut file = Checkpoint(tensors);
        let [vocab, width] = file.shape("emb.weight")?;
        let [heads, head] = file.shape("blocks.0.att.r_k")?;
        let [inner, _] = file.shape("blocks.0.ffn.key.weight")?;
        Ok(Model {
            sizes: Sizes { vocab, width, layers, heads, head, inner },
            bug,
            emb: file.take("emb.weight")?,
            ln0: file.norm("blocks.0.ln0")?,
            blocks: (0..layers)
                .map(|i| Ok((file.time_mix(i)?, file.channel_mix(i)?)))
                .collect::<Result<_, String>>()?,
            ln_out: file.norm("ln_out")?,
            head: file.take("head.weight")?,
        })
    }

    pub fn zero(&self) -> State {
        let Sizes { width, layers, head, .. } = self.sizes;
        let zeros = |n| vec![0.0; n];
        State { att: zeros(layers * width), wkv: zeros(layers * width * head), ffn: zeros(layers * width) }
    }

    /// Feeds tokens (at least one), layer by layer, all tokens of a layer at once; `state` moves on behind the last.
    ///
    /// Returns logits, (T, V) or (1, V).
    pub fn forward(&self, tokens: &[usize], state: &mut State, logits: Logits, trace: &mut Trace) -> Option<Vec<f32>> {
        let Sizes { width: c, head: n, .. } = self.sizes;
        if self.bug == Bug::StateTransposed {
            state.wkv = state.wkv.chunks_exact(n * n).flat_map(|head| transposed(head, n)).collect();
        }
        let mut scope = Scope { trace, at: String::new(), tokens: tokens.len() };
        let emb = tokens.iter().flat_map(|token| &self.emb[token * c..(token + 1) * c]);
        let emb = scope.keep("emb", emb.copied().collect());
        let mut x = scope.keep("ln0", norm(&emb, &self.ln0, c, LN_EPS));
        let mut v_first = None;
        for (i, (time, channel)) in self.blocks.iter().enumerate() {
            scope.at = format!("blocks.{i}.att.");
            let (att, wkv) = (&mut state.att[i * c..(i + 1) * c], &mut state.wkv[i * c * n..(i + 1) * c * n]);
            x = self.time_mix(time, &x, Left { att, wkv, v_first: &mut v_first }, &mut scope);
            scope.at = format!("blocks.{i}.ffn.");
            x = self.channel_mix(channel, &x, &mut state.ffn[i * c..(i + 1) * c], &mut scope);
        }
        scope.at.clear();
        let whole = logits == Logits::All || scope.wants("ln_out") || scope.wants("head");
        let rows = if whole { tokens.len() } else { 1 };
        scope.tokens = rows;
        let ln_out = scope.keep("ln_out", norm(&x[x.len() - rows * c..], &self.ln_out, c, LN_EPS));
        if logits == Logits::None && !scope.wants("head") {
            return None;
        }
        let mut head = scope.keep("head", linear(&ln_out, &self.head, rows));
        match logits {
            Logits::None => None,
            Logits::Last => Some(head.split_off(head.len() - self.sizes.vocab)),
            Logits::All => Some(head),
        }
    }

    fn time_mix(&self, z: &TimeMix, x: &[f32], left: Left, scope: &mut Scope) -> Vec<f32> {
        let Sizes { width: c, head: n, .. } = self.sizes;
        let tokens = scope.tokens;
        let ln1 = scope.keep("ln1", norm(x, &z.ln1, c, LN_EPS));
        let shift = scope.keep("shift", shifted(&ln1, left.att));
        let mut mixed = z.mixes.iter().zip(["xr", "xw", "xk", "xv", "xa", "xg"]);
        let [xr, xw, xk, xv, xa, xg] = std::array::from_fn(|_| {
            let (share, name) = mixed.next().expect("six mixes");
            scope.keep(name, lerp(&ln1, &shift, share))
        });

        let r = scope.keep("r", linear(&xr, &z.receptance, tokens));
        let w_lora = scope.keep("w_lora", each(&linear(&xw, &z.w.down, tokens), |_, s| s.tanh()));
        let w_raw = scope.keep("w_raw", linear(&w_lora, &z.w.up, tokens));
        let w = scope.keep("w", each(&w_raw, |j, s| (-DECAY_SCALE * sigmoid(z.w0[j % c] + s)).exp()));
        let k_raw = scope.keep("k_raw", linear(&xk, &z.key, tokens));
        let kk = scope.keep("kk", unit(&each(&k_raw, |j, k| k * z.k_k[j % c]), n, KEY_NORM_FLOOR)); // from the unmodified key
        let a_lora = scope.keep("a_lora", linear(&xa, &z.a.down, tokens)); // nothing in the middle
        let a = each(&linear(&a_lora, &z.a.up, tokens), |j, s| sigmoid(z.a0[j % c] + s));
        let a = scope.keep("a", a); // in-context learning rate
        let k = scope.keep("k", each(&k_raw, |j, k| k * (1.0 + (a[j] - 1.0) * z.k_a[j % c])));
        let v_raw = scope.keep("v_raw", linear(&xv, &z.value, tokens));
        let v = self.value(z, v_raw, &xv, left.v_first, scope);
        let g_lora = scope.keep("g_lora", each(&linear(&xg, &z.g.down, tokens), |_, s| sigmoid(s)));
        let g = scope.keep("g", linear(&g_lora, &z.g.up, tokens));

        let y = self.recurrence([&r, &w, &k, &v, &kk, &a], left.wkv, scope);
        let group = if self.bug == Bug::OneGroup { c } else { n };
        let ln_x = scope.keep("ln_x", norm(&y, &z.ln_x, group, GROUP_NORM_EPS));
        let bonus = scope.keep("bonus", bonus(&r, &k, &v, &z.r_k, n));
        let gated = each(&g, |j, g| (ln_x[j] + bonus[j]) * g);
        let out = scope.keep("out", linear(&gated, &z.output, tokens));
        left.att.copy_from_slice(&ln1[ln1.len() - c..]);
        scope.keep("res", each(&out, |j, out| x[j] + out))
    }

    /// The value residual: later layers move towards layer 0's value.
    fn value(
        &self,
        z: &TimeMix,
        v_raw: Vec<f32>,
        xv: &[f32],
        v_first: &mut Option<Vec<f32>>,
        scope: &mut Scope,
    ) -> Vec<f32> {
        let v = match (&z.residual, &v_first) {
            (Some((v0, pair)), Some(first)) => {
                let v_lora = scope.keep("v_lora", linear(xv, &pair.down, scope.tokens));
                let s = linear(&v_lora, &pair.up, scope.tokens);
                each(&v_raw, |j, v| v + (first[j] - v) * sigmoid(v0[j % v0.len()] + s[j]))
            }
            _ => v_raw,
        };
        if v_first.is_none() || self.bug == Bug::PreviousValue {
            *v_first = Some(v.clone());
        }
        scope.keep("v", v)
    }

    /// S' = S (diag(w) - kk (kk a)^T) + v k^T, y = S' r; the only part that walks over time.
    fn recurrence(&self, inputs: [&[f32]; 6], wkv: &mut [f32], scope: &mut Scope) -> Vec<f32> {
        let Sizes { width: c, heads, head: n, .. } = self.sizes;
        let mut y = Vec::with_capacity(scope.tokens * c);
        let mut seen = Vec::new();
        for t in 0..scope.tokens {
            for (h, state) in wkv.chunks_exact_mut(n * n).enumerate() {
                let at = t * c + h * n;
                let [r, w, k, v, kk, a] = inputs.map(|z| &z[at..at + n]);
                let rate = |j: usize| if self.bug == Bug::RemovalWithoutRate { 1.0 } else { a[j] };
                for (row, v) in state.chunks_exact_mut(n).zip(v) {
                    let before = dot(row, r);
                    let removed = dot(row, kk);
                    for (j, s) in row.iter_mut().enumerate() {
                        *s = *s * w[j] - removed * kk[j] * rate(j) + v * k[j];
                    }
                    y.push(if self.bug == Bug::ReadBeforeWrite { before } else { dot(row, r) });
                }
            }
            if scope.wants("state") {
                seen.extend_from_slice(wkv);
            }
        }
        if scope.wants("state") {
            scope.found("state", vec![scope.tokens, heads, n, n], seen);
        }
        scope.keep("y", y)
    }

    fn channel_mix(&self, z: &ChannelMix, x: &[f32], left: &mut [f32], scope: &mut Scope) -> Vec<f32> {
        let c = self.sizes.width;
        let ln2 = scope.keep("ln2", norm(x, &z.ln2, c, LN_EPS));
        let shift = scope.keep("shift", shifted(&ln2, left));
        left.copy_from_slice(&ln2[ln2.len() - c..]);
        let xk = scope.keep("xk", lerp(&ln2, &shift, &z.x_k));
        let k = scope.keep("k", linear(&xk, &z.key, scope.tokens));
        let act = scope.keep("act", each(&k, |_, k| k.max(0.0).powi(2)));
        let out = scope.keep("out", linear(&act, &z.value, scope.tokens));
        scope.keep("res", each(&out, |j, out| x[j] + out))
    }
}

/// Per head (sum of r k r_k) v: modified key, mixed value.
fn bonus(r: &[f32], k: &[f32], v: &[f32], r_k: &[f32], n: usize) -> Vec<f32> {
    let weight = |head: usize| -> f32 { (head * n..(head + 1) * n).map(|j| r[j] * k[j] * r_k[j % r_k.len()]).sum() };
    v.chunks_exact(n).enumerate().flat_map(|(head, v)| each(v, |_, v| weight(head) * v)).collect()
}
