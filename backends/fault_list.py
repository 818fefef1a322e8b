"""The catalogue of planted faults: what each is called, which tensor it spoils and where it was met. Imports no torch.

A port of RWKV goes wrong in ways that repeat. Every row here is one of them, a mistake that was made in
public or that a plausible reading of the paper leads to. `backends.reference.faults` holds the code of
each; backend `fault:NAME` computes with it. The equivalents are no mistakes: other ways to write the same
function, kept as negative controls, for a gate that calls one of them a failure raises a false alarm.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from backends.errors import UsageError, unknown

EQUATION, BATCH, CARRY, TOKENIZER, SAMPLER = "equation", "batch", "carry", "tokenizer", "sampler"
"""Kinds: a wrong equation; one that shows only with several rows; a state mishandled between two calls; ids; choice."""

EAGLE, FINCH, GOOSE = ("5.1", "5.2"), ("6",), ("7", "7a", "7b")
DEEP, DEA = ("7a", "7b"), ("7b",)
DIAGONAL, LOW_RANK = (*EAGLE, *FINCH), (*FINCH, *GOOSE)
EVERY = (*DIAGONAL, *GOOSE)
"""Groups of RWKV versions that make the same mistakes."""


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue.

    Attributes:
        name: what `fault:NAME` takes.
        tensor: short name of the first tensor that is wrong ("att.w", "head"), or "tokenizer", "sampler".
        summary: the mistake, in the words of somebody who made it.
        seen_in: public threads and programs in which it was met; empty if it is only plausible.
        kind: one of the constants of this module.
        equivalent: True for another way to write the same function.
        versions: of RWKV in which it can be made.
    """

    name: str
    tensor: str
    summary: str
    seen_in: tuple[str, ...] = ()
    kind: str = EQUATION
    equivalent: bool = False
    versions: tuple[str, ...] = GOOSE


DELTA_RULE = "ooples/AiDotNet.Tensors#895"
GOLDEN_MODEL = "ooples/AiDotNet#875"
COPIED_BACK = "ggml-org/llama.cpp#11445"
INITIAL_STATE = "fla-org/flash-linear-attention#351"
CUT = "RWKV/RWKV-infctx-trainer#95"
GROUP_NORM = ("candle, v5 and v6", "rwkv.cpp, v5")

_STREAM = (
    Entry("emb-row-shift", "emb", "the embedding of token t is row t + 1"),
    Entry("ln0-missing", "ln0", "the norm behind the embedding is left out"),
    Entry("ln0-eps-1e-6", "ln0", "layer norm 0 with epsilon 1e-6"),
    Entry("ln1-eps-1e-6", "att.ln1", "layer norm 1 with epsilon 1e-6"),
    Entry("ln1-eps-1e-4", "att.ln1", "layer norm 1 with epsilon 1e-4"),
    Entry("ln1-eps-outside", "att.ln1", "layer norm 1 divides by (deviation + epsilon): epsilon outside the root"),
    Entry("ln1-rms", "att.ln1", "layer norm 1 as RMS norm: the mean stays in"),
    Entry("ln1-no-bias", "att.ln1", "layer norm 1 without its bias"),
    Entry("ln1-unbiased", "att.ln1", "layer norm 1 with the variance divided by C - 1"),
    Entry("ln2-eps-1e-6", "ffn.ln2", "layer norm 2 with epsilon 1e-6"),
    Entry("ln2-no-weight", "ffn.ln2", "layer norm 2 without its weight"),
    Entry("ln-out-eps-1e-6", "ln_out", "the last layer norm with epsilon 1e-6"),
    Entry("ln-out-missing", "ln_out", "the last layer norm is left out"),
    Entry("shift-first-token", "att.shift", "the first token is mixed with itself, not with zero"),
    Entry("shift-raw", "att.shift", "the token before enters the mix as it was before the norm"),
    Entry("shift-two-back", "att.shift", "the mix reads two tokens back"),
    Entry("shift-missing", "att.shift", "every token is mixed with zero"),
    Entry("mix-complement", "att.xr", "x_* is taken for the share of the current token, as in v5"),
    Entry("mix-order", "att.xw", "the mixes are read in the order r k v w a g"),
    Entry("mix-xk-xv-swapped", "att.xk", "the mixes of key and value are swapped"),
    Entry("mix-xa-is-xg", "att.xa", "the mix of a is read from g's"),
    Entry("res-from-norm", "att.res", "the time mix is added to the normed stream"),
    Entry("head-row-shift", "head", "the logit of token t stands at t + 1"),
    Entry("head-row-zero", "head", "one row of the head is zero"),
)

_MIX = (
    Entry("r-transposed", "att.r", "the receptance matrix is transposed in one layer"),
    Entry("r-sigmoid", "att.r", "the receptance passes a sigmoid, as in v4"),
    Entry("r-row-zero", "att.r", "one row of a receptance matrix is zero"),
    Entry("k-transposed", "att.k_raw", "the key matrix is transposed in one layer"),
    Entry("v-transposed", "att.v_raw", "the value matrix is transposed in one layer"),
    Entry("out-transposed", "att.out", "the output matrix is transposed in one layer"),
    Entry("w-no-tanh", "att.w_lora", "no tanh inside the decay's low-rank pair"),
    Entry("w-sigmoid-inside", "att.w_lora", "sigmoid in the place of the decay's tanh"),
    Entry("w-no-bias", "att.w", "w0 is not added"),
    Entry("w-v6", "att.w", "the decay of v6: exp(-exp(w0 + ...)), without the softplus clamp"),
    Entry("w-sigmoid", "att.w", "the decay is a bare sigmoid", (DELTA_RULE,)),
    Entry("w-no-scale", "att.w", "exp(-sigmoid(...)): the factor exp(-1/2) is missing"),
    Entry("w-log", "att.w", "the exponent itself is used as the decay"),
    Entry("w-scale-0.6", "att.w", "exp(-1/2) written as 0.6"),
    Entry("kk-not-normalised", "att.kk", "the removal key is not normalised", (DELTA_RULE,)),
    Entry("kk-norm-over-c", "att.kk", "the removal key is normalised over all heads together"),
    Entry("kk-from-modified-k", "att.kk", "the removal key is made of the modified key"),
    Entry("kk-no-scale", "att.kk", "k_k is left out"),
    Entry("kk-eps-in-root", "att.kk", "the key's norm as sqrt(sum + 1e-6)", ("fla v7, fused norm",)),
    Entry("kk-floor-1e-4", "att.kk", "the key's squared norm is floored at 1e-4, which fits into f16"),
    Entry("kk-no-floor", "att.kk", "the key's norm has no floor: a zero key divides by zero"),
    Entry("kk-interleaved", "att.kk", "channels are dealt to the heads in turn before the key is normalised"),
    Entry("a-tanh", "att.a_lora", "a tanh inside the learning rate's low-rank pair"),
    Entry("a-no-bias", "att.a", "a0 is not added"),
    Entry("a-hard-sigmoid", "att.a", "the learning rate through a piecewise linear sigmoid"),
    Entry("a-twice", "att.a", "the learning rate is sigmoid times 2, as in negative-eigenvalue variants"),
    Entry("k-not-modified", "att.k", "the key is not modified by a and k_a"),
    Entry("k-no-k_a", "att.k", "the key is multiplied by a: k_a is taken for 1"),
    Entry("k-a-plus", "att.k", "the key is multiplied by 1 + a k_a"),
    Entry("v-residual-missing", "att.v", "no value residual"),
    Entry("v-residual-reversed", "att.v", "the value residual runs the other way: from v_first towards v"),
    Entry("v-residual-previous", "att.v", "the value residual reads the layer before, not layer 0"),
    Entry("v-residual-raw", "att.v", "the value residual is added, not mixed in"),
    Entry("v-no-bias", "att.v", "v0 is not added"),
    Entry("v-tanh", "att.v_lora", "a tanh inside the value residual's low-rank pair"),
    Entry("g-no-sigmoid", "att.g_lora", "no sigmoid inside the gate's low-rank pair"),
    Entry("g-tanh", "att.g_lora", "tanh in the place of the gate's sigmoid"),
    Entry("g-sigmoid-outside", "att.g", "a second sigmoid outside the gate"),
)

_MEMORY = (
    Entry("state-no-removal", "att.state", "nothing is removed: diagonal decay only", (DELTA_RULE,)),
    Entry("state-plus", "att.state", "the removal is added"),
    Entry("state-decay-axis", "att.state", "the decay runs over the value axis"),
    Entry("state-removal-axis", "att.state", "the removal reads the state along the wrong axis"),
    Entry("state-no-a", "att.state", "a is missing from the removal", (DELTA_RULE,)),
    Entry("state-a-on-read", "att.state", "a scales the key that reads, not the key that removes"),
    Entry("state-decay-first", "att.state", "the removal reads the decayed state"),
    Entry("state-decay-last", "att.state", "the decay falls on the removed part and the new value too"),
    Entry("state-outer-swapped", "att.state", "key and value are swapped where they are written"),
    Entry("state-raw-key", "att.state", "the key is written before a and k_a modified it"),
    Entry("state-bf16", "att.state", "the state is stored in bf16"),
    Entry("state-heads-swapped", "att.state", "the values of the heads are written in another order of heads"),
    Entry("state-batch-leak", "att.state", "every row continues from row 0's state", (), BATCH),
    Entry("y-old-state", "att.y", "the read-out comes before the write, as in v5 and v6"),
    Entry("y-transposed", "att.y", "the read-out runs over the value axis", (DELTA_RULE,)),
    Entry("y-reads-k", "att.y", "the read-out takes the key in the place of the receptance", (DELTA_RULE,)),
    Entry("y-scaled", "att.y", "the receptance is scaled by 1/sqrt(N), as in attention"),
    Entry("ln-x-eps-1e-5", "att.ln_x", "group norm with epsilon 1e-5", GROUP_NORM),
    Entry("ln-x-eps-8e-5", "att.ln_x", "group norm with epsilon 8e-5: the divisor 8 is not squared"),
    Entry("ln-x-unbiased", "att.ln_x", "group norm with the variance divided by N - 1"),
    Entry("ln-x-one-group", "att.ln_x", "group norm over all heads together"),
    Entry("ln-x-no-bias", "att.ln_x", "group norm without its bias"),
    Entry("ln-x-interleaved", "att.ln_x", "group norm over every H-th channel"),
    Entry("bonus-missing", "att.bonus", "no bonus"),
    Entry("bonus-raw-key", "att.bonus", "the bonus takes the key before a and k_a modified it"),
    Entry("bonus-raw-value", "att.bonus", "the bonus takes the value before the residual"),
    Entry("bonus-no-r_k", "att.bonus", "r_k is left out of the bonus"),
    Entry("bonus-per-channel", "att.bonus", "the bonus is not summed over the head"),
    Entry("bonus-before-norm", "att.ln_x", "the bonus is added before the group norm"),
    Entry("out-no-gate", "att.out", "the gate is left out"),
    Entry("out-gate-first", "att.out", "the gate falls on the norm only, not on the bonus"),
)

_CHANNEL = (
    Entry("ffn-shift-missing", "ffn.shift", "every token of the channel mix is mixed with zero"),
    Entry("ffn-mix-complement", "ffn.xk", "the channel mix's x_k is taken for the share of the current token"),
    Entry("ffn-transposed", "ffn.k", "the first quarter of the channel mix's key matrix is transposed"),
    Entry("ffn-relu", "ffn.act", "the ReLU is not squared"),
    Entry("ffn-silu", "ffn.act", "SiLU in the place of the squared ReLU", (GOLDEN_MODEL,)),
    Entry("ffn-gelu", "ffn.act", "GELU in the place of the squared ReLU"),
    Entry("ffn-square", "ffn.act", "the square without the ReLU"),
    Entry("ffn-row-zero", "ffn.out", "one row of a channel mix's value matrix is zero"),
)

_FEEDING = (
    Entry("edge-shift", "att.shift", "the token shift starts from zero at every call", (COPIED_BACK,), CARRY),
    Entry("edge-ffn-shift", "ffn.shift", "the channel mix's shift starts from zero at every call", (), CARRY),
    Entry("edge-state", "att.state", "the state starts from zero at every call", (), CARRY),
    Entry("edge-state-transposed", "att.state", "the state is handed over transposed", (INITIAL_STATE,), CARRY),
    Entry("edge-state-bf16", "att.state", "the state is handed over in bf16", (), CARRY),
    Entry("edge-heads", "att.state", "the state is handed over with its heads in another order", (), CARRY),
    Entry("edge-layers", "att.state", "the state is handed over with the first two layers swapped", (), CARRY),
    Entry("edge-shifts-swapped", "att.shift", "the two shifts of a layer are handed over swapped", (), CARRY),
)

_EDGES = (
    Entry("tokenizer-ascii", "tokenizer", "a character outside ASCII becomes a question mark", (), TOKENIZER),
    Entry("tokenizer-id-shift", "tokenizer", "every id is one too high", (), TOKENIZER),
    Entry("tokenizer-bos", "tokenizer", "a token 0 is put in front", (), TOKENIZER),
    Entry("tokenizer-crlf", "tokenizer", "CRLF is read as LF", (), TOKENIZER),
    Entry("tokenizer-strip", "tokenizer", "white space at the ends is stripped", (), TOKENIZER),
    Entry("tokenizer-lossy", "tokenizer", "a character cut between two tokens is replaced", (CUT,), TOKENIZER),
    Entry("sampler-stale", "sampler", "a token is chosen from the logits of the step before", (), SAMPLER),
    Entry("sampler-repeat-last", "sampler", "the last token of the prompt is fed twice", (), SAMPLER),
    Entry("sampler-penalty", "sampler", "a repetition penalty stays on by default", (), SAMPLER),
    Entry("sampler-off-by-one", "sampler", "the sorted ranking is read from its second place", (), SAMPLER),
    Entry("sampler-one-short", "sampler", "generation ends one token early", (), SAMPLER),
    Entry("sampler-temperature", "sampler", "the logits are divided by a temperature of 2 first", (), SAMPLER),
)

_EAGLE = (
    Entry("time-mix-complement", "att.xr", "time_mix is taken for the share of the token before, as maa in v6"),
    Entry(
        "decay-twice", "att.w", "the decay is made of a decay: exp(-exp(...)) of what the file's loader already made"
    ),
)

_FINCH = (
    Entry("maa-complement", "att.xx", "maa is taken for the share of the current token, as time_mix in v5"),
    Entry("maa-x-missing", "att.xx", "the dynamic mixes are computed from the current token alone: maa_x is left out"),
    Entry("maa-no-tanh", "att.mix_lora", "no tanh inside the low-rank pair of the mixes"),
    Entry("maa-order", "att.mix_w", "the five low-rank rows are read in the order r w k v g, not w k v r g"),
    Entry("maa-no-low-rank", "att.mix_w", "the mixes are the static ones, as in v5"),
    Entry("maa-no-static", "att.mix_w", "the mixes are the dynamic ones alone"),
    Entry("maa-one-matrix", "att.mix_k", "all five mixes go through the first of the five matrices"),
    Entry("decay-static", "att.w", "the decay is the static one, as in v5"),
    Entry("decay-no-static", "att.w", "time_decay is not added"),
)

_DIAGONAL = (
    Entry("decay-once", "att.w", "one exponential is missing: exp(...) in the place of exp(-exp(...))"),
    Entry("decay-v7", "att.w", "the decay of v7: bounded by exp(-exp(-1/2)) through a sigmoid"),
    Entry("decay-sigmoid", "att.w", "the decay is a sigmoid of its exponent"),
    Entry("key-transposed", "att.k", "the key matrix is transposed in one layer of v5 or v6"),
    Entry("value-transposed", "att.v", "the value matrix is transposed in one layer of v5 or v6"),
    Entry("gate-no-silu", "att.g", "the gate has no activation"),
    Entry("gate-sigmoid", "att.g", "sigmoid in the place of the gate's SiLU"),
    Entry("gate-before-norm", "att.ln_x", "the gate falls on the read-out, before the group norm"),
    Entry("u-exp", "att.bonus", "the bonus u is exponentiated although the file has it as time_faaaa"),
    Entry("u-missing", "att.bonus", "the bonus is r k v: u is left out"),
    Entry("u-heads-swapped", "att.bonus", "u of one head is used in another"),
    Entry("u-on-state", "att.bonus", "u falls on the state that is read, not on the current token"),
    Entry("y-new-state", "att.y", "the read-out comes after the write, as in v7"),
    Entry("y-decayed-state", "att.y", "the read-out sees the state after its decay"),
    Entry("state-bonus-written", "att.state", "the bonus is written into the state too"),
    Entry("state-no-decay", "att.state", "nothing decays"),
    Entry("ffn-mix-other", "ffn.xk", "the shares of the channel mix are taken for those of the other token"),
    Entry("ffn-mixes-swapped", "ffn.xk", "the mixes of key and receptance are swapped in the channel mix"),
    Entry("ffn-no-receptance", "ffn.out", "no receptance in the channel mix, as in v7"),
    Entry("ffn-r-no-sigmoid", "ffn.r", "the channel mix's receptance has no sigmoid"),
    Entry("ffn-r-transposed", "ffn.r", "the channel mix's receptance matrix is transposed"),
)

_DEEP = (
    Entry("deep-row-shift", "ffn.s_emb", "DeepEmbed takes the matrix of token t from row t + 1"),
    Entry("deep-no-x", "ffn.s_emb", "s_emb_x is left out: DeepEmbed's matrix is the stored one alone"),
    Entry("deep-x-of-stream", "ffn.s_emb", "s_emb_x is applied to the layer's input, not to the embedding"),
    Entry("deep-shifted", "ffn.s_lora", "DeepEmbed reads the token-shifted input"),
    Entry("deep-tanh", "ffn.s_lora", "a tanh behind s1"),
    Entry("deep-transposed", "ffn.s_mid", "DeepEmbed's 32 x 32 matrix is transposed"),
    Entry("deep-no-s0", "ffn.s", "s0 is not added"),
    Entry("deep-s0-one", "ffn.s", "s0 is taken for 1"),
    Entry("deep-missing", "ffn.out", "no DeepEmbed: the channel mix of v7"),
)

_DEA = (
    Entry("dea-normed", "qkv.q", "DEA reads the normed stream"),
    Entry("dea-row-shift", "qkv.k_emb", "DEA takes the key vector of token t from row t + 1"),
    Entry("dea-v-no-x", "qkv.v_emb", "v_emb_x is left out"),
    Entry("dea-k-no-emb", "qkv.k", "DEA's key is the low-rank one alone"),
    Entry("dea-k-tanh", "qkv.k", "a tanh in DEA's key"),
    Entry("dea-v-no-tanh", "qkv.v", "no tanh in DEA's value"),
    Entry("dea-no-query-shift", "qkv.qn", "DEA's query is not mixed with that of the token before"),
    Entry("dea-mix-complement", "qkv.qn", "DEA's mixes are taken for the share of the current token"),
    Entry("dea-lnq-missing", "qkv.qn", "no norm behind DEA's query"),
    Entry("dea-lnq-eps-1e-6", "qkv.qn", "the norm of DEA's query with epsilon 1e-6"),
    Entry("dea-lnk-eps-1e-6", "qkv.kn", "the norm of DEA's key with epsilon 1e-6"),
    Entry("dea-lnv-missing", "qkv.vn", "no norm behind DEA's value"),
    Entry("dea-lnv-eps-1e-6", "qkv.vn", "the norm of DEA's value with epsilon 1e-6"),
    Entry("dea-no-bend", "qkv.out", "DEA's score is not bounded: no tanh"),
    Entry("dea-no-root", "qkv.out", "DEA's score lacks the factor 1/sqrt(256)"),
    Entry("dea-bound-30", "qkv.out", "DEA's score is bounded at 30, as in other models, not at 64"),
    Entry("dea-sees-next", "qkv.out", "DEA's mask is off by one: a token sees the next"),
    Entry("dea-not-itself", "qkv.out", "DEA's mask is off by one: a token does not see itself"),
    Entry("dea-values-late", "qkv.out", "DEA's values are those of the token before"),
    Entry("dea-linear", "qkv.out", "DEA weighs by scores, without the softmax"),
    Entry("dea-missing", "att.res", "no DEA"),
    Entry("dea-first", "att.ln1", "DEA enters the stream before the time mix reads it"),
)

_DEA_FEEDING = (
    Entry("edge-query", "qkv.qn", "DEA's query before starts from zero at every call", (), CARRY),
    Entry("edge-cache", "qkv.kn", "DEA forgets at every call", (), CARRY),
    Entry("edge-cache-short", "qkv.kn", "DEA's newest token is lost at every call", (), CARRY),
)

# Rows above that need nothing but what every version has.
_EVERYWHERE = """
emb-row-shift ln0-missing ln0-eps-1e-6 ln1-eps-1e-6 ln1-eps-1e-4 ln1-eps-outside ln1-rms ln1-no-bias ln1-unbiased
ln2-eps-1e-6 ln2-no-weight ln-out-eps-1e-6 ln-out-missing shift-first-token shift-raw shift-two-back shift-missing
mix-xk-xv-swapped res-from-norm head-row-shift head-row-zero r-transposed r-sigmoid r-row-zero out-transposed
state-decay-axis state-decay-last state-outer-swapped state-bf16 state-heads-swapped state-batch-leak y-transposed
y-reads-k y-scaled ln-x-eps-1e-5 ln-x-eps-8e-5 ln-x-unbiased ln-x-one-group ln-x-no-bias ln-x-interleaved
bonus-missing bonus-per-channel out-no-gate ffn-shift-missing ffn-transposed ffn-relu ffn-silu ffn-gelu ffn-square
ffn-row-zero ln-x-divided ln1-two-moments ffn-clamp
"""
_LOW_RANK = {"w-no-tanh", "w-sigmoid-inside"}


def _of(versions: tuple[str, ...], rows: Iterable[Entry]) -> Iterator[Entry]:
    return (replace(row, versions=versions) for row in rows)


def _spread(rows: Iterable[Entry]) -> Iterator[Entry]:
    """Rows of RWKV-7 with all versions in which their mistake can be made."""
    for row in rows:
        wide = LOW_RANK if row.name in _LOW_RANK else row.versions
        yield replace(row, versions=EVERY if row.name in _EVERYWHERE.split() else wide)


def _same(name: str, tensor: str, summary: str, *seen_in: str, versions: tuple[str, ...] = GOOSE) -> Entry:
    return Entry(name, tensor, summary, seen_in, equivalent=True, versions=versions)


_SAME_DEEP = (
    _same("deep-summed", "ffn.s_mid", "DeepEmbed's product as a sum over rows", versions=DEEP),
    _same("dea-exponents", "qkv.out", "DEA's softmax by hand, less the largest score", versions=DEA),
)

_SAME_BOTH = (
    _same("gate-divided", "att.g", "SiLU as z / (1 + exp(-z))"),
    _same("bonus-summed-back", "att.bonus", "the bonus of v5 and v6 multiplied and summed in another order"),
    _same("state-columns", "att.state", "the state of v5 and v6 is kept transposed", "rwkv package"),
)

_SAME_DIAGONAL = (
    _same("share-weighted", "att.xr", "the token shift of v6 as a weighted mean of both tokens", versions=FINCH),
    _same("time-mix-added", "att.xr", "the token shift of v5 as x m + p - p m", versions=EAGLE),
    _same("decay-reciprocal", "att.w", "the decay of v6 as 1 / exp(exp(...))", versions=FINCH),
    _same("decay-reciprocal-static", "att.w", "the decay of v5 as 1 / exp(exp(...))", versions=EAGLE),
    *_of(DIAGONAL, _SAME_BOTH),
)

_SAME = (
    _same("w-0.606531", "att.w", "exp(-1/2) rounded to six digits", "the official inference code"),
    _same("w-softplus", "att.w", "the decay as exp(-exp(-softplus(-s) - 1/2))", "the official training code"),
    _same("kk-root-1e-12", "att.kk", "the key's norm as sqrt(sum + 1e-12)"),
    _same("kk-norm-plus-1e-12", "att.kk", "the key's norm plus 1e-12 in the place of a floor", "candle v7"),
    _same("kk-rsqrt", "att.kk", "the key times the reciprocal root of its squared sum, floored"),
    _same("k-expanded", "att.k", "the key as k + k (a - 1) k_a"),
    _same("v-weighted", "att.v", "the value residual as a weighted mean of both values"),
    _same("mix-weighted", "att.xr", "the token shift as a weighted mean of both tokens"),
    _same("state-transposed", "att.state", "the state is computed on its transpose"),
    _same("state-matrix", "att.state", "the transition is made as one matrix and multiplied"),
    _same("ln-x-divided", "att.ln_x", "group norm of y / 8 with epsilon 1e-5", "the official training code"),
    _same("ln1-two-moments", "att.ln1", "the variance as the mean square less the squared mean"),
    _same("bonus-reordered", "att.bonus", "the bonus multiplied and summed in another order"),
    _same("ffn-clamp", "ffn.act", "squared ReLU as x max(x, 0)"),
)

_ROWS = chain(
    _spread(chain(_STREAM, _MIX, _MEMORY, _CHANNEL)),
    _of(EVERY, chain(_FEEDING, _EDGES)),
    _of(EAGLE, _EAGLE),
    _of(FINCH, _FINCH),
    _of(DIAGONAL, _DIAGONAL),
    _of(DEEP, _DEEP),
    _of(DEA, chain(_DEA, _DEA_FEEDING)),
)

FAULTS: Mapping[str, Entry] = {row.name: row for row in _ROWS}
"""Every mistake by name."""

EQUIVALENTS: Mapping[str, Entry] = {row.name: row for row in chain(_spread(_SAME), _SAME_DIAGONAL, _SAME_DEEP)}
"""Every other way to write the same function, by name."""

PAIRS: tuple[tuple[str, str], ...] = (
    ("edge-shift", "edge-ffn-shift"),
    ("edge-shift", "edge-state"),
    ("w-v6", "y-old-state"),
    ("state-no-removal", "w-sigmoid"),
    ("w-sigmoid", "y-reads-k"),
    ("state-decay-axis", "y-transposed"),
    ("a-tanh", "v-tanh"),
    ("w-no-tanh", "g-tanh"),
    ("mix-complement", "ffn-mix-complement"),
    ("state-raw-key", "bonus-raw-value"),
    ("k-transposed", "v-transposed"),
    ("ln1-eps-1e-6", "ln2-eps-1e-6"),
    ("ln-x-eps-1e-5", "kk-eps-in-root"),
)
"""Mistakes that come together: made by one misreading, or found in one program."""


def find(name: str) -> Entry | None:
    """The row of that name, mistake or equivalent; None where there is none."""
    return FAULTS.get(name) or EQUIVALENTS.get(name)


def applying(version: str) -> dict[str, Entry]:
    """Mistakes, then equivalents, that a version of RWKV can have."""
    return {row.name: row for row in (*FAULTS.values(), *EQUIVALENTS.values()) if version in row.versions}


def pick(name: str, version: str) -> Entry:
    """The row of that name.

    Raises:
        UsageError: there is none, or none for that version.
    """
    row = find(name)
    if row is None:
        raise unknown("fault", name, applying(version))
    if version not in row.versions:
        has = ", ".join(row.versions)
        raise UsageError(f"fault {name!r} is one of RWKV {has}; this checkpoint is RWKV-{version}.")
    return row
