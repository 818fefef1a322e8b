"""What the machine would allow: the bytes and operations of a cell, against rates probed in the same rounds.

The count follows the architecture, not the program: what any exact program has to read and multiply.

- **Bytes of a decoded token**: every weight once in the subject's number format, the embedding table and other tables
  by token left out (one row of them is read); shared by the rows of a batch. The state, in float32, read once and
  written once by every row. Not counted: activations, logits.
- **Operations of a prefilled token**: two for every entry of every matrix, save those whose products are needed for the
  last token alone (two for each of their entries, per row): the head, and in the last layer the channel mix and what
  reads the recurrence. Not counted: the recurrence, norms and everything element by element, in RWKV-7 under 4%
  together.
- **The limit of a cell** is the longer of bytes / probed read rate and operations / probed rate of a matrix product in
  that format (a roofline: Williams et al., 2009, doi:10.1145/1498765.1498785). Both rates are probed in every round, so
  that fraction and limit see the same machine.

Checked against the published sizes: 0.1B decodes with 563 MB a token in F32 and 281 MB in bf16, and has 180.6 million
operations a token in its matrices without the head (`tests/harness/test_limits.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from backends.errors import BackendError
from harness import statistics
from harness.cells import NOTHING, Cell, Sample, Skipped

if TYPE_CHECKING:
    from backends.base import ModelFacts, Session
    from backends.probe import Probe

BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2}
"""Number format -> bytes of an entry."""

TABLES = "emb.weight"
"""End of the names of tables of which a token reads one row: emb.weight, s_emb.weight, k_emb.weight, v_emb.weight."""

VECTORS = ("r_k", "time_faaaa", "time_first", "time_decay", "time_state")
"""Ends of the names of what has two axes and is multiplied element by element."""

LATE = (".att.receptance.weight", ".att.output.weight", ".att.gate.weight", ".att.g1", ".att.g2", ".qkv.qq.weight")
"""Ends of the names of matrices that no state depends on, beside the channel mix."""

BEYOND = 1.05
"""Share of the limit above which a figure cannot be true: nobody reads faster than the machine."""


@dataclass(frozen=True)
class Work:
    """What one checkpoint asks of a machine.

    Attributes:
        weights: entries that every decoded token reads, head included, tables left out.
        head: entries of the head.
        products: entries of all other matrices.
        state: bytes of one row's state in float32.
        late: entries of those among `products` that only the last token of a prompt has to meet.
    """

    weights: int
    head: int
    products: int
    state: int
    late: int = 0

    def bytes(self, cell: Cell, dtype: str, spared: float = 0) -> float:
        """Bytes of one sample of a cell, of whose weights `spared` need not be read."""
        passes = cell.tokens if cell.what == "decode" else 1
        return max(passes * self.weights * BYTES[dtype] - spared, 0) + passes * 2 * self.state * cell.batch

    def operations(self, cell: Cell, spared: float = 0) -> float:
        """Operations of one sample of a cell, of which `spared` need not be done."""
        last = cell.tokens if cell.what == "decode" else 1  # every decoded token is a last one
        entries = (self.products - self.late) * cell.tokens + (self.late + self.head) * last
        return max(2 * cell.batch * entries - spared, 0)


def work_of(shapes: Mapping[str, tuple[int, ...]], facts: "ModelFacts") -> Work:
    """Count a checkpoint.

    Args:
        shapes: official tensor name -> canonical shape.
        facts: its sizes.
    """
    read = {name: shape for name, shape in shapes.items() if not name.endswith(TABLES)}
    head = prod(read.get("head.weight", (0,)))
    matrices = {n: prod(s) for n, s in read.items() if len(s) > 1 and n != "head.weight" and not n.endswith(VECTORS)}
    last = f"blocks.{facts.n_layer - 1}."
    late = [size for n, size in matrices.items() if n.startswith(last) and (".ffn." in n or n.endswith(LATE))]
    carried = 5 * facts.n_embd if facts.version == "4" else 2 * facts.n_embd + facts.n_head * facts.head_size**2
    state = facts.n_layer * carried
    return Work(sum(map(prod, read.values())), head, sum(matrices.values()), 4 * state, sum(late))


@dataclass(frozen=True)
class Rates:
    """What a device was able to do in one round.

    Attributes:
        read: bytes per second.
        gemm: number format -> operations per second.
        copy: bytes per second, read plus written.
    """

    read: float
    gemm: Mapping[str, float]
    copy: float = 0.0

    def seconds(self, work: Work, cell: Cell, dtype: str, skipped: Skipped = NOTHING) -> tuple[float, str]:
        """The shortest time that a sample can take, and what binds it: "memory" or "arithmetic".

        Args:
            work: what the checkpoint asks.
            cell: what is timed.
            dtype: the subject's number format.
            skipped: what the subject declares to have left out of this sample.
        """
        memory = work.bytes(cell, dtype, skipped.bytes) / self.read
        arithmetic = work.operations(cell, skipped.operations) / self.gemm[dtype]
        return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")


@dataclass
class Limits:
    """The machine's limits for one run, probed when asked for.

    Attributes:
        work: what the checkpoint asks.
        cache: bytes of the last-level cache; weights that fit in it are not read from memory.
        open_probe: device -> its probe; raises BackendError where there is none.
        missing: device -> why it has no limits, in words.
    """

    work: Work
    cache: int
    open_probe: Callable[[str], "Probe"]
    missing: dict[str, str] = field(default_factory=dict)
    _probes: dict[str, "Probe"] = field(default_factory=dict)

    def probe(self, device: str) -> "Probe | None":
        """The probe of a device, opened once; None where there is none."""
        if device in self.missing:
            return None
        if device not in self._probes:
            try:
                self._probes[device] = self.open_probe(device)
            except BackendError as error:
                self.missing[device] = str(error)
        return self._probes.get(device)

    def turn(self, device: str, dtypes: tuple[str, ...]) -> Callable[[], Rates] | None:
        """What a device's turn in a round is, tried once; None where it has no probe."""
        probe = self.probe(device)
        if probe is None:
            return None

        def turn() -> Rates:
            return Rates(probe.read(), {dtype: probe.gemm(dtype) for dtype in dtypes}, probe.copy())

        try:
            turn()
        except BackendError as error:
            self.missing[device] = str(error)
            return None
        return turn

    def compare(
        self, cell: Cell, session: "Session", rates: Sequence[Rates], samples: Sequence[Sample]
    ) -> dict[str, Any]:
        """How near to the machine's limit a subject came in a cell, or `no_limit`: why that is not known.

        Args:
            cell: what was timed.
            session: the subject.
            rates: of its device, by round.
            samples: its own, by round.
        """
        info = session.info
        why = self.missing.get(info.device, "") or session.own_file
        if why or not rates:
            return {"no_limit": why or f"no limits of {info.device} were probed"}
        rounds = zip(rates, samples, strict=True)
        found = [rate.seconds(self.work, cell, info.dtype, one.skipped) for rate, one in rounds]
        bounds = [bound for _, bound in found]
        bound = max(bounds, key=bounds.count)
        if bound == "memory" and info.device == "cpu" and self.work.weights * BYTES[info.dtype] <= self.cache:
            return {"no_limit": f"the weights fit into the processor's cache of {self.cache >> 20} MiB"}
        allowed = [shortest for shortest, _ in found]
        whole = [one.seconds(self.work, cell, info.dtype)[0] for one in rates]  # however much a program leaves out
        shares = fraction(allowed, [one.seconds for one in samples])
        return {**shares, "bound": bound, "limit_seconds": allowed, "whole_seconds": whole}


def fraction(limits: list[float], seconds: list[float]) -> dict[str, Any]:
    """How near to the limit the samples came.

    Args:
        limits: the shortest possible seconds, by round.
        seconds: those taken in the same rounds.

    Returns:
        `fraction` with `fraction_low` and `fraction_high`, and `invalid`: whether it cannot be true.
    """
    found = statistics.median([limit / taken for limit, taken in zip(limits, seconds, strict=True)])
    shares = {"fraction": found.value, "fraction_low": found.low, "fraction_high": found.high}
    return {**shares, "invalid": bool(found.low > BEYOND)}
