"""How the next token is chosen: penalties, temperature, top-p, top-k, the draw. In two semantics; numpy only.

    official   as `PIPELINE` of the `rwkv` package: top-p and top-k on probabilities at temperature 1, then
               p ** (1 / temperature). Tokens tied at the cutoff all stay. Generated tokens are counted, not the prompt;
               tokens of blanks or digits are counted zero times, so that only the presence penalty meets them.
    candle     as candle's RWKV-7 example: temperature first, then top-k, then top-p on what that gives. Of tokens
               tied at the cutoff the lower ids stay. The prompt is counted too, with decay; nothing is exempt.

Both penalise first: logit - (presence + frequency * count); a count decays by one step before the new token adds 1.
One difference to the package is on purpose: there top_p = 1 is greedy whenever the float32 sum of all probabilities
ends below 1; here top_p >= 1 is off.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from backends.base import Array, Ids, Tokenizer
from backends.errors import BackendError, UsageError, unknown

BLANKS_AND_DIGITS = " \t0123456789"
"""A token whose text is a substring of this is exempt from the frequency penalty, officially."""

COLDEST = 1e-7
"""Below this temperature candle takes the largest logit."""

_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "top_k": (0.0, math.inf),
    "presence": (-math.inf, math.inf),
    "frequency": (-math.inf, math.inf),
    "decay": (0.0, 1.0),
}


@dataclass(frozen=True)
class Params:
    """What shapes the distribution. The defaults are those of the `rwkv` package's `PIPELINE_ARGS`.

    Attributes:
        temperature: 0 is greedy.
        top_p: mass to keep; 1 is off.
        top_k: how many tokens to keep; 0 is off.
        presence: subtracted from the logit of a token that has occurred.
        frequency: subtracted once per (decayed) occurrence.
        decay: what a count keeps of itself at every step.
        exempt: tokens whose text is a substring of this add nothing to their count; official only.

    Raises:
        UsageError: a value that is not finite or out of its range.
    """

    temperature: float = 1.0
    top_p: float = 0.85
    top_k: int = 0
    presence: float = 0.2
    frequency: float = 0.2
    decay: float = 0.996
    exempt: str = BLANKS_AND_DIGITS

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                bounds = "finite" if low == -math.inf else f"at least {low:g}" + (f", at most {high:g}" * (high < 9))
                raise UsageError(f"{name.replace('_', '-')} must be {bounds}, got {value}.")


PRESETS: Mapping[str, Params] = {
    "chat": Params(1.0, 0.5, 0, 2.0, 0.1, 0.99),
    "creative": Params(0.6, 0.7, 0, 2.0, 0.2, 0.99),
}
"""Named settings, with the numbers of candle's example."""


@dataclass(frozen=True)
class Semantics:
    """One way to read the same parameters.

    Attributes:
        shape: penalised logits (V,) and parameters -> probabilities (V,).
        counts_prompt: whether tokens of the prompt count as occurrences.
        exempts: whether `Params.exempt` is heeded; such a token is then known with a count of 0.
        defaults: parameters that its own program starts from.
    """

    name: str
    shape: Callable[[Array, Params], Array]
    counts_prompt: bool
    exempts: bool
    defaults: Params


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Probabilities (V,) in float64 at a temperature above 0; logits of -inf become 0."""
    with np.errstate(over="ignore"):  # a tiny temperature throws all but the largest to -inf, as it should
        powers = np.exp((logits - logits.max()) / temperature)
    p: Array = powers / powers.sum()
    return p


def _official(logits: Array, params: Params) -> Array:
    temperature, top_p = (1.0, 0.0) if params.temperature == 0 else (params.temperature, params.top_p)
    p = softmax(logits)
    kept = np.ones(p.shape, dtype=bool)
    if top_p < 1:
        falling = np.sort(p)[::-1]
        reached = np.cumsum(falling) >= top_p
        if reached.any():
            kept = p >= falling[reached.argmax()]  # not a count: ties at the cutoff survive
    if 0 < params.top_k < len(p):
        kept[np.argsort(p, kind="stable")[: -params.top_k]] = False
    return softmax(np.where(kept, logits, -np.inf), temperature)  # p ** (1 / T), without underflow


def _candle(logits: Array, params: Params) -> Array:
    if params.temperature < COLDEST:
        chosen = np.zeros(logits.shape)
        chosen[len(logits) - 1 - logits[::-1].argmax()] = 1.0  # the last of equals
        return chosen
    p = softmax(logits, params.temperature)
    falling = np.argsort(-p, kind="stable")
    kept = falling[: params.top_k or None]
    if 0 < params.top_p < p[kept].sum() and params.top_p < 1:
        before = np.cumsum(p[kept]) - p[kept]
        kept = kept[before < params.top_p]
    chosen = np.zeros(p.shape)
    chosen[kept] = p[kept] / p[kept].sum()
    return chosen


SEMANTICS: Mapping[str, Semantics] = {
    "official": Semantics("official", _official, counts_prompt=False, exempts=True, defaults=Params()),
    "candle": Semantics("candle", _candle, counts_prompt=True, exempts=False, defaults=PRESETS["chat"]),
}
"""Every way by name."""


def semantics(name: str) -> Semantics:
    """The row of that name, or a UsageError with what exists."""
    if name not in SEMANTICS:
        raise unknown("sampling", name, SEMANTICS)
    return SEMANTICS[name]


def is_exempt(tokenizer: Tokenizer | None, token: int, text: str) -> bool:
    """Whether a token's text is a substring of `text`; what is no text (World's id 0, half a character) is not."""
    if tokenizer is None:
        return False
    try:
        piece = tokenizer.decode_bytes([token]).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return bool(piece) and piece in text


@dataclass
class Counts:
    """Decaying counts of the tokens of one text.

    Attributes:
        way: which tokens count.
        params: how they decay, and which are exempt.
        tokenizer: tells which tokens are exempt; None exempts none.
        seen: token -> count.
    """

    way: Semantics
    params: Params
    tokenizer: Tokenizer | None = None
    seen: dict[int, float] = field(default_factory=dict)

    def start(self, prompt: Sequence[int]) -> None:
        """A prompt was read: it counts, or whatever counted so far is forgotten."""
        if not self.way.counts_prompt:
            self.seen = {}
            return
        self._fade(len(prompt))
        for steps, token in enumerate(reversed(prompt)):
            self.seen[token] = self.seen.get(token, 0.0) + self.params.decay**steps

    def add(self, token: int) -> None:
        """A token was chosen."""
        self._fade(1)
        exempt = self.way.exempts and is_exempt(self.tokenizer, token, self.params.exempt)
        self.seen[token] = self.seen.get(token, 0.0) + (0.0 if exempt else 1.0)

    def penalised(self, logits: Array) -> Array:
        """Logits (V,) in float64 less what the counts cost."""
        result = logits.astype(np.float64)
        for token, count in self.seen.items():
            if self.way.exempts or count > 0:
                result[token] -= self.params.presence + self.params.frequency * count
        return result

    def _fade(self, steps: int) -> None:
        kept = self.params.decay**steps
        self.seen = {token: count * kept for token, count in self.seen.items()}


def noise(seed: int, step: int, size: int, row: int = 0) -> Array:
    """Gumbel noise (size,) of one draw: argmax(log p + noise) is a draw from p.

    Fixed by seed, step and row, so that two programs draw with the same luck, and a small error of one of them rarely
    changes the choice.
    """
    key = [seed, step, row] if row else [seed, step]
    return np.random.default_rng(key).gumbel(size=size)


class Sampler:
    """Chooses tokens; seeded, so that the same logits give the same tokens. A `backends.base.Sampler`.

    Args:
        params: what shapes the distribution.
        way: "official" or "candle".
        seed: of the draws, from 0.
        tokenizer: tells which tokens are exempt from the frequency penalty.
        draws: how many draws of this seed have been made before.
        banned: ids that are never chosen.
    """

    def __init__(
        self,
        params: Params,
        way: str = "official",
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        draws: int = 0,
        banned: Iterable[int] = (),
    ) -> None:
        self.params, self.way, self.seed, self.draws = params, semantics(way), seed, draws
        self.tokenizer = tokenizer
        self.banned = np.array(sorted(banned), dtype=np.int64)
        self.rows: list[Counts] = []

    @property
    def counts(self) -> Counts:
        """Counts of the first row."""
        return self._row(0)

    def start(self, prompt: Sequence[int]) -> None:
        """Begin a text that continues `prompt`; see `Counts.start`."""
        self.counts.start(prompt)

    def probabilities(self, logits: Array, row: int = 0) -> Array:
        """What the next token is drawn from.

        Args:
            logits: (V,), of any float format; left as they are.
            row: of the batch.

        Returns:
            (V,) float64, with the sum 1.

        Raises:
            BackendError: a logit is NaN or +inf, or every token is ruled out.
        """
        penalised = self._row(row).penalised(logits)
        penalised[self.banned] = -np.inf
        if not penalised.max() < np.inf:  # NaN too
            raise BackendError("the logits to sample from hold NaN or infinity.")
        if penalised.max() == -np.inf:
            raise BackendError("the logits to sample from are all -inf: every token is ruled out.")
        return self.way.shape(penalised, self.params)

    def __call__(self, logits: Array) -> Ids:
        """Logits (B, V) of one step -> ids (B,), which are counted."""
        ids = np.array([self._draw(values, row) for row, values in enumerate(logits)], dtype=np.int64)
        self.draws += 1
        return ids

    def _draw(self, logits: Array, row: int) -> int:
        p = self.probabilities(logits, row)
        with np.errstate(divide="ignore"):
            token = int((np.log(p) + noise(self.seed, self.draws, len(p), row)).argmax())
        self._row(row).add(token)
        return token

    def _row(self, row: int) -> Counts:
        while len(self.rows) <= row:
            self.rows.append(Counts(self.way, self.params, self.tokenizer))
        return self.rows[row]
