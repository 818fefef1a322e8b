"""The contract of a backend: prepare, then run. Light to import (numpy only).

A backend is a `Backend` row (registry.py) whose opener returns a `Session`. A session answers five
verbs: `forward`, `generate`, `export_state`, `import_state`, `sync`. Writing one means writing
`_forward`, the two state verbs and `info`; everything else is inherited.

Letters: B batch, T tokens, V vocabulary, C width, L layers, H heads, N head size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from backends import token_ids
from backends.errors import Unsupported

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

DTYPES = ("f64", "f32", "bf16", "f16")
"""Short names of the number formats, as every option and every record spells them."""

ABILITIES = ("logits-all", "state", "trace", "batch", "generate", "tokenizer", "replay", "sampler")
"""What a suite may need beyond "logits after the last token", which every backend has."""


class Tokenizer(Protocol):
    """Text to ids and back; an optional second port of a session."""

    name: str

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added in front."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`, which may end inside a character."""


class Sampling(Protocol):
    """A backend's own way from logits to the next token and from a question to a prompt; a third, optional port."""

    semantics: str
    """Which known semantics it follows: "official" or "candle", see `backends.sampling`."""

    def probabilities(
        self, logits: Array, prompt: Sequence[int], generated: Sequence[int], parameters: Mapping[str, float]
    ) -> Array:
        """What the next token would be drawn from, (V,).

        Args:
            logits: (V,) float32, after the last token.
            prompt: ids that were fed, which candle counts as occurrences.
            generated: ids that were drawn since.
            parameters: temperature, top_p, top_k, presence, frequency, decay.
        """

    def render(self, template: str, prompt: str, system: str, suffix: str) -> list[int]:
        """Ids of a prompt in one of the templates of `backends.prompts`; Unsupported where it has no such template."""


@dataclass(frozen=True)
class Want:
    """What one `forward` shall return.

    Attributes:
        logits: "none", "last" (after the last token) or "all" (after every token).
        state: whether to return the state after the last token.
        trace: names of inner tensors, or patterns like "blocks.*.att.w" (fnmatch).
        fetch: False computes the logits but leaves them on the device; for timing only.
    """

    logits: Literal["none", "last", "all"] = "last"
    state: bool = False
    trace: tuple[str, ...] = ()
    fetch: bool = True


@dataclass(frozen=True)
class Output:
    """What one `forward` returned, as numpy arrays on the CPU.

    Attributes:
        logits: (B, 1, V) for "last", (B, T, V) for "all", else None. float32, or float64 from a
            float64 backend.
        state: the backend's own handle of the state; pass it back to `forward` or `export_state`.
        trace: name -> (B, T, ...) array.
    """

    logits: Array | None = None
    state: Any = None
    trace: Mapping[str, Array] = field(default_factory=dict)


GROWING = ("tokens", "dea_k", "dea_v")
"""Components of a state that grow by one entry of axis 2 a token."""


@dataclass(frozen=True)
class State:
    """The recurrent state in the one layout that all backends agree on.

    Attributes:
        att_shift: (L, B, C), the previous token's normed input of every time mix.
        wkv: (L, B, H, N value, N key), the WKV state; row = value channel, column = key channel. RWKV-4 has none,
            (L, B, 0, 0, 0).
        ffn_shift: (L, B, C), the previous token's normed input of every channel mix.
        extra: what a version adds beyond these, by name; axis 1 is the batch. RWKV-4: `memory` (L, B, 3, C), its rows
            aa, bb and pp. RWKV-7b: `tokens` (1, B, S), the ids so far; `dea_k` and `dea_v` (L, B, S, 32), what `k1` and
            `v1` made of every token; `dea_q` (L, B, 256), the query of the last token.
    """

    att_shift: Array
    wkv: Array
    ffn_shift: Array
    extra: Mapping[str, Array] = field(default_factory=dict)

    def parts(self) -> dict[str, Array]:
        """Every component by name, in a fixed order; no `wkv` where a version has none."""
        wkv = {"wkv": self.wkv} if self.wkv.size else {}
        return {"att_shift": self.att_shift, **wkv, "ffn_shift": self.ffn_shift, **self.extra}

    def zeros(self) -> "State":
        """The state before the first token, in the shapes of this one; what grows is empty."""
        parts = {
            name: np.zeros_like(part[:, :, :0] if name in GROWING else part) for name, part in self.parts().items()
        }
        extra = {name: parts[name] for name in self.extra}
        return State(parts["att_shift"], np.zeros_like(self.wkv), parts["ffn_shift"], extra)

    @property
    def nbytes(self) -> int:
        """Bytes of all components together."""
        return sum(part.nbytes for part in self.parts().values())


@dataclass(frozen=True)
class ModelFacts:
    """Identity and sizes of the opened checkpoint.

    Attributes:
        name: what the user asked for (`--model`).
        version: "4", "5.0", "5.1", "5.2", "6", "7", "7a", "7b".
        evidence: the tensor names and shapes that decided the version, in words.
        ranks: inner sizes of the low-rank pairs (w, a, v, g).
        stored: number format of the file.
        tokenizer: "world", "bytes".
    """

    name: str
    version: str
    evidence: str
    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    head_size: int
    n_ffn: int
    parameters: int
    ranks: Mapping[str, int] = field(default_factory=dict)
    stored: str = ""
    tokenizer: str = ""


@dataclass(frozen=True)
class Info:
    """What a session is, for the report's Environment table and for matching a suite's needs.

    Attributes:
        backend: registry name.
        packages: name -> version of what computes ("torch": "2.13.0+cpu").
        device: "cpu", "cuda:0"; `device_name` is the product name where one is known.
        dtype: number format of weights and activations; `state_dtype` of the WKV state.
        attention: how the recurrence is evaluated, in words.
        abilities: subset of ABILITIES.
        notes: what the reader should know ("no C compiler: runs uncompiled").
    """

    backend: str
    model: ModelFacts
    device: str = "cpu"
    device_name: str = ""
    dtype: str = "f32"
    state_dtype: str = "f32"
    threads: int = 0
    attention: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    abilities: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gap:
    """What lies between a recorded tensor and the recorded inputs that it is replayed from.

    Attributes:
        spanned: full names, not recorded, that a replay computes on the way; an error found may be theirs.
        lacking: full names, not recorded, without which the tensor cannot be replayed at all.
    """

    spanned: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


Call = tuple[npt.ArrayLike, Any, Want | None]
"""Tokens, state, want: the arguments of one `forward`."""

Sampler = Callable[[Array], Ids]
"""Logits (B, V) of one step -> ids (B,)."""


def greedy(logits: Array) -> Ids:
    """The id of the largest logit of every row; the lowest id among equals."""
    ids: Ids = np.argmax(logits, axis=-1).astype(np.int64)
    return ids


class Session(ABC):
    """One opened model on one device in one number format. A context manager."""

    info: Info
    tokenizer: Tokenizer | None = None
    sampling: Sampling | None = None
    streams: bool = False
    """Whether every call reads the whole checkpoint again, so that calls are better made together."""
    timed: bool = True
    """Whether the time that a call takes says anything about the backend; it does not where answers were recorded."""
    skipped_bytes: int = 0
    """Bytes of weights that calls have left unread so far, where a kernel skips what would meet zeros."""
    skipped_operations: int = 0
    """Operations that calls have left out so far, where a kernel skips what would meet zeros; of the last layer only
    where a call feeds single tokens, since a prompt's last token alone has to meet it."""
    shares_batch: bool = True
    """Whether the rows of a batch share the work; where they are fed one after another, batches are not timed."""
    own_file: str = ""
    """Why its weights are not the checkpoint's in its number format, so that their bytes are unknown; in words."""

    def forward(self, tokens: npt.ArrayLike, state: Any = None, want: Want | None = None) -> Output:
        """Feed tokens after `state` and return what `want` names.

        Args:
            tokens: ids, (T,) or (B, T), T >= 1.
            state: a handle from an earlier `Output.state` or `import_state`; None is the zero
                state. Never written to: the same handle may be used again.
            want: default `Want()`, the logits after the last token.

        Raises:
            BackendError: ids that are not integers, out of range, or of a wrong shape.
            Unsupported: `want` asks for an ability that `info.abilities` lacks.
        """
        return self._forward(*self._admitted(tokens, state, want))

    def generate(
        self, tokens: npt.ArrayLike, sampler: Sampler | None = None, max_new_tokens: int = 1, stop: Sequence[int] = ()
    ) -> Iterator[Ids]:
        """Continue a prompt, one token a step.

        Args:
            tokens: the prompt, (T,) or (B, T).
            sampler: logits (B, V) -> ids (B,); None is greedy.
            max_new_tokens: how many steps at most.
            stop: ids that end a row; the run ends before the step in which every row has stopped.

        Yields:
            int64 (B,), the new ids of the step.
        """
        sampler = sampler or greedy
        ids, state = self._checked(tokens), None
        stopped = np.zeros(ids.shape[0], dtype=bool)
        for _ in range(max_new_tokens):
            out = self.forward(ids, state, Want(logits="last", state=True))
            assert out.logits is not None
            new = sampler(out.logits[:, -1])
            stopped |= np.isin(new, stop)
            if stopped.all():
                return
            yield new
            ids, state = new[:, None], out.state

    def forward_together(self, calls: Sequence[Call]) -> list[Output]:
        """Several independent `forward`s; a session that `streams` reads its weights once for all of them.

        Args:
            calls: arguments of each.

        Raises:
            BackendError: as `forward`, for any of them; none is answered then.
            Unsupported: likewise.
        """
        return [self.forward(*call) for call in calls]

    @abstractmethod
    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        """`forward` after its checks; tokens are (B, T) int64 in range."""

    @abstractmethod
    def export_state(self, state: Any) -> State:
        """A handle as numpy arrays in the agreed layout (a copy)."""

    @abstractmethod
    def import_state(self, state: State) -> Any:
        """A handle that continues from `state`; inverse of `export_state`."""

    def replay(
        self,
        recorded: Mapping[str, Array],
        tokens: npt.ArrayLike,
        state: Any = None,
        only: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """Evaluate every named equation on the inputs that somebody recorded; a reference's ability.

        Args:
            recorded: full tensor name -> (B, T, ...), from any backend. Inputs that were not recorded are computed
                from recorded ones inside the same sub-layer, see `gaps`.
            tokens: the ids that were fed, (T,) or (B, T).
            state: the state that the recording began with.
            only: recorded tensors to evaluate; None is all.

        Returns:
            Full name of a recorded tensor -> what it should have been, in the order of evaluation. What cannot be
            reached from recorded inputs is left out.
        """
        del recorded, tokens, state, only
        raise Unsupported(f"{self.info.backend} has no ability 'replay'.")

    def gaps(self, recorded: Collection[str]) -> dict[str, Gap]:
        """What a replay of these tensors has to bridge; a reference's ability.

        Args:
            recorded: full tensor names.

        Returns:
            Each of them that exists, in the order of evaluation.
        """
        del recorded
        raise Unsupported(f"{self.info.backend} has no ability 'replay'.")

    def misread(self, recorded: Mapping[str, Array], tokens: npt.ArrayLike, name: str) -> dict[str, Array]:
        """What plausible misreadings of one equation give on the recorded inputs; a reference's ability.

        Args:
            recorded: full tensor name -> (B, T, ...).
            tokens: the ids that were fed, from the zero state.
            name: full name of the tensor in question.

        Returns:
            The mistake in words ("key_weight is transposed") -> what it makes of the tensor, (B, T, ...).
        """
        del recorded, tokens, name
        raise Unsupported(f"{self.info.backend} has no ability 'replay'.")

    def sync(self) -> None:  # noqa: B027 - nothing to wait for is the honest default on a CPU
        """Return when everything asked so far has been computed."""

    def round_trip(self) -> float | None:
        """Seconds of a call in which nothing is computed; None where no other process is asked."""
        return None

    def close(self) -> None:  # noqa: B027
        """Give memory and processes back; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admitted(self, tokens: npt.ArrayLike, state: Any, want: Want | None) -> tuple[Ids, Any, Want]:
        """The arguments of a `forward`, checked."""
        want = want or Want()
        ids = self._checked(tokens)
        for ability in self._needed(ids, state, want):
            if ability not in self.info.abilities:
                has = ", ".join(sorted(self.info.abilities)) or "none"
                raise Unsupported(f"{self.info.backend} has no ability {ability!r}; it has: {has}.")
        return ids, state, want

    def _checked(self, tokens: npt.ArrayLike) -> Ids:
        """Tokens as int64 (B, T), or an error in words."""
        return token_ids.checked(tokens, self.info.model.vocab_size)

    @staticmethod
    def _needed(ids: Ids, state: Any, want: Want) -> Iterator[str]:
        if want.logits == "all" and ids.shape[1] > 1:
            yield "logits-all"
        if want.state or state is not None:
            yield "state"
        if want.trace:
            yield "trace"
        if ids.shape[0] > 1:
            yield "batch"
