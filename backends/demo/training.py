"""The training loop: a fixed number of steps, seeded, with checkpoints from which it continues bit by bit."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from backends.demo import corpus, initial, network, optim
from backends.demo.initial import Shape
from backends.demo.network import Carried
from backends.errors import InputError
from backends.weights import DTYPES

LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class Plan:
    """Everything that decides a training run.

    Attributes:
        shape: sizes of the network.
        steps: how many batches that begin anywhere in the corpus.
        finish: how many more at the end that begin where a file or a statement does; `demo` had none.
        rows, tokens: size of a batch.
        carried: segments after which a row begins with the zero state again; in the finish, `finish_carried`.
        matrix_rate, rate, end_rate: peak learning rates of the blocks' matrices, of the vectors and low-rank pairs,
            of embedding and head.
        warm: steps over which the rates rise; afterwards they fall to zero in a straight line.
        finish_share: with what share of the peak rates the finish begins; they fall to zero again.
        dtype: number format of the factors of matrix products; sums and weights are float32.
        scan: "native" (scan.c) or "chunks" (network.wkv).
        compile: whether the layers go through torch.compile.
        seed: of the first weights and the order of the files.
    """

    shape: Shape = field(default_factory=Shape)
    steps: int = 6400
    finish: int = 0
    rows: int = 8
    tokens: int = 512
    carried: int = 8
    finish_carried: int = 2
    matrix_rate: float = 0.02
    rate: float = 0.002
    end_rate: float = 0.004
    warm: int = 100
    finish_share: float = 0.15
    dtype: str = "bf16"
    scan: str = "native"
    compile: bool = True
    seed: int = 0

    @property
    def total(self) -> int:
        """All steps."""
        return self.steps + self.finish

    def share(self, step: int) -> float:
        """The share of the peak learning rates at a step, counted from 0."""
        if step >= self.steps:
            return self.finish_share * (self.total - step) / self.finish
        return min((step + 1) / self.warm, (self.steps - step) / max(1, self.steps - self.warm))


class Trainer:
    """Weights, optimiser and position of one run.

    Attributes:
        step: batches done.
        loss: of the last batch, in bits per byte; NaN before the first.
        whole: whether weights, optimiser and step belong together; not so in the middle of an update.
    """

    def __init__(self, plan: Plan, files: Sequence[bytes]) -> None:
        self.plan, self.step, self.loss = plan, 0, float("nan")
        self.whole = True
        self.weights = initial.weights(plan.shape, plan.seed)
        self._rows = corpus.Rows(files, plan.rows, plan.tokens, plan.carried, plan.seed)
        self._starts = corpus.Starts(files, plan.rows, plan.tokens, plan.finish_carried, plan.seed)
        matrices = {n: p for n, p in self.weights.items() if _is_matrix(n)}
        others = {n: p for n, p in self.weights.items() if n not in matrices}
        ends = [("emb.weight", plan.end_rate), ("head.weight", plan.end_rate)]
        self._optimiser = optim.Optimiser(matrices, others, plan.matrix_rate, plan.rate, ends)
        self._carried = network.fresh(plan.shape.L, plan.rows, plan.shape.H, plan.shape.N)
        self._layer = network.compiled() if plan.compile else network.block

    def advance(self) -> None:
        """One batch: forward, backward, update."""
        plan = self.plan
        source, place = (self._rows, self.step) if self.step < plan.steps else (self._starts, self.step - plan.steps)
        ids = torch.from_numpy(source.batch(place))
        kept = torch.from_numpy(~source.fresh(place)).float()
        carried = [c.kept(kept) for c in self._carried]
        scan = network.scan(plan.scan)
        logits, carried = network.run(self.weights, ids[:, :-1], carried, DTYPES[plan.dtype], scan, self._layer)
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        self.whole = False
        self._optimiser.step(plan.share(self.step))
        self._carried = [c.detached() for c in carried]
        self.step, self.loss = self.step + 1, loss.item() / LN2
        self.whole = True

    def save(self, path: Path) -> None:
        """Write everything that `load` needs; the file is complete or not there."""
        state = {
            "plan": asdict(self.plan),
            "step": self.step,
            "loss": self.loss,
            "weights": {n: p.detach() for n, p in self.weights.items()},
            "optimiser": self._optimiser.state(),
            "carried": [tuple(c) for c in self._carried],
        }
        part = path.with_name(path.name + ".part")
        try:
            torch.save(state, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote.

        Raises:
            InputError: it is damaged, or of a run with another plan.
        """
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            theirs = state["plan"]
        except Exception as error:
            raise InputError(f"{path} is no checkpoint of a training run; delete it to start anew.") from error
        plan = asdict(self.plan)
        other = [name for name in plan if plan[name] != theirs.get(name)]
        if other:
            raise InputError(f"{path} is of a run with another {', '.join(other)}; use another --out or the same plan.")
        self.step, self.loss = state["step"], state["loss"]
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(state["weights"][name])
        self._optimiser.load(state["optimiser"])
        self._carried = [Carried(*c) for c in state["carried"]]


_MATRICES = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")
"""What orthogonalised momentum updates: the blocks' large matrices, not their low-rank pairs."""


def _is_matrix(name: str) -> bool:
    return name.endswith(tuple(f"{matrix}.weight" for matrix in _MATRICES))


@torch.no_grad()
def bits_per_byte(
    weights: network.Params, shape: Shape, files: Sequence[bytes], scan: str, limit: int = 0, dtype: str = "f32"
) -> float:
    """Mean cost of the files' bytes, each file from the zero state, after the byte that stands before every file.

    Args:
        weights: official name -> tensor.
        shape: their sizes.
        files: what to predict.
        scan: as in `Plan`.
        limit: of each file only so many bytes; 0 is all.
        dtype: as in `Plan`.
    """
    bits, count = 0.0, 0
    texts = sorted((text[: limit or None] for text in files), key=len)
    for group in (texts[i : i + 16] for i in range(0, len(texts), 16)):
        bits += sum(_cost(weights, shape, group, scan, dtype))
        count += sum(map(len, group))
    return bits / count


def _cost(
    weights: network.Params, shape: Shape, group: list[bytes], scan: str, dtype: str, segment: int = 512
) -> Iterator[float]:
    """Bits of a group of files, segment by segment, side by side."""
    length = -(-max(map(len, group)) // segment) * segment
    ids = np.zeros((len(group), length + 1), dtype=np.int64)
    real = np.zeros((len(group), length), dtype=np.float32)
    for row, text in enumerate(group):
        ids[row, 1 : len(text) + 1] = np.frombuffer(text, dtype=np.uint8)
        real[row, : len(text)] = 1.0
    carried = network.fresh(shape.L, len(group), shape.H, shape.N)
    for start in range(0, length, segment):
        part = torch.from_numpy(ids[:, start : start + segment + 1])
        logits, carried = network.run(weights, part[:, :-1], carried, DTYPES[dtype], network.scan(scan))
        losses = functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        yield float(losses @ torch.from_numpy(real[:, start : start + segment]).flatten()) / LN2


def train(trainer: Trainer, path: Path, tell: Callable[[Trainer, float], None], every: float = 180.0) -> None:
    """Run to the plan's end, a checkpoint every few minutes, at the end, and when interrupted.

    Interrupted in the middle of an update, the run goes on from the checkpoint before.

    Args:
        trainer: at its position.
        path: of the checkpoint.
        tell: called after every step, with the seconds that it took.
        every: seconds between two checkpoints.
    """
    saved = time.monotonic()
    try:
        while trainer.step < trainer.plan.total:
            began = time.monotonic()
            trainer.advance()
            tell(trainer, time.monotonic() - began)
            if time.monotonic() - saved > every:
                trainer.save(path)
                saved = time.monotonic()
    finally:
        if trainer.whole:
            trainer.save(path)
