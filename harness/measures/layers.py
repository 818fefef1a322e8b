"""Layers: every named tensor against its own equation, evaluated on the inputs that the subject recorded.

What a tensor has wrong by itself is *contributed*; it is compared with what honest rounding contributes
there (`Bands`). The rest is *inherited*. Only a contribution can put a tensor out of its band, so the first
one out is where the program is wrong, in any number format.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from backends.base import Array, Gap, Session, Want
from backends.errors import BackendError, Unsupported
from harness import hints, replay
from harness.measures.base import Context, Evidence, Number, Sample, parted
from harness.replay import Error, Out

PORTION = 256 << 20
"""Bytes of traces of honest runs that may lie in memory at once."""

SMALL = 8 << 20
"""Bytes of a recorded tensor up to which hints look at all of its tokens; beyond, up to the first wrong one."""

STATES = 512 << 20
"""Bytes of float64 WKV states, one a token, that the truth may record; beyond that they are spanned."""


SUMMED = 256
"""Terms of a sum up to which, in float32, its order does not matter for a band; see `_free_order`."""


@dataclass(frozen=True)
class Bands:
    """What honest rounding does to every tensor, token by token.

    Attributes:
        contributed: by the tensor's own equation.
        total: against the truth's free run.
        reach: farthest that one honest run came from the band of the others, in units of it.
        runs: how many there were.
    """

    contributed: Mapping[str, Error]
    total: Mapping[str, Error]
    reach: float
    runs: int


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """The trace of a prompt, fed in two calls so that a chunk edge lies inside; and what it has wrong.

    The truth's sample is its trace alone. The others' hold "trace", "gaps" (`Session.gaps`) and the errors
    "contributed" and "total" by tensor.

    Raises:
        Unsupported: the reference cannot replay.
        BackendError: a recorded tensor has not the truth's shape.
    """
    tokens = context.tokens[: context.case.options["tokens"]]
    names = list(truth["trace"]) if truth else _names(session, len(tokens))
    traces = _feed(session, np.tile(tokens, (rows, 1)), context.case.options["edge"], names)
    if truth is None:
        return [{"trace": {name: value[0] for name, value in traces.items()}}]
    return list(_samples(traces, truth, context, rows))


def _names(session: Session, tokens: int) -> list[str]:
    """What the truth records: every tensor, but no states where they would not fit."""
    trace = session.forward([0], want=Want(trace=("*",))).trace
    states = [name for name in trace if name.endswith(".state")]
    too_large = tokens * sum(trace[name].nbytes for name in states) > STATES
    return [name for name in trace if not (too_large and name in states)]


def _feed(session: Session, tokens: Array, edge: int, names: Sequence[str]) -> dict[str, Array]:
    """Traces (B, T, ...) in the order of `names`; in one call from a session that cannot go on from a state."""
    going_on = "state" in session.info.abilities
    logits: Any = "all" if "logits-all" in session.info.abilities else "none"  # the head's trace comes with them
    parts, state = [], None
    for part in np.split(tokens, [min(edge, tokens.shape[1] - 1)] if going_on and tokens.shape[1] > 1 else [], axis=1):
        out = session.forward(part, state, Want(logits, going_on, tuple(names), fetch=False))
        state = out.state
        parts.append(out.trace)
    return {name: np.concatenate([p[name] for p in parts], axis=1) for name in names if all(name in p for p in parts)}


def _samples(traces: Mapping[str, Array], truth: Sample, context: Context, rows: int) -> Iterator[Sample]:
    reference = replayer(context)
    tokens = np.tile(context.tokens[: context.case.options["tokens"]], (rows, 1))
    for name, value in traces.items():
        shape = (rows, *truth["trace"][name].shape)
        if value.shape != shape:
            raise BackendError(f"trace {name} has shape {value.shape}, where the reference has {shape}")
    contributed: list[dict[str, Error]] = [{} for _ in range(rows)]
    for group in _groups(traces):  # block by block, so that only one block's expected values lie in memory
        for name, want in reference.replay(traces, tokens, only=group).items():
            for row in range(rows):
                contributed[row][name] = replay.error(traces[name][row], want[row])
    gaps = reference.gaps(traces)
    for row in range(rows):
        trace = {name: value[row] for name, value in traces.items()}
        total = replay.errors(trace, truth["trace"])
        yield {"trace": trace, "gaps": gaps, "contributed": contributed[row], "total": total}


def replayer(context: Context) -> Session:
    """The session that replays.

    Raises:
        Unsupported: there is none.
    """
    session = context.truth_session
    if session is None or "replay" not in session.info.abilities:
        raise Unsupported("the suite needs a reference that can replay; reference-f64 can")
    return session


def _groups(names: Mapping[str, Any]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return list(groups.values())


def bands(session: Session, context: Context, truth: Sample, names: Sequence[str], count: int) -> Bands:
    """Run honest arithmetic many times and replay it.

    Args:
        session: of the `honest` backend.
        context: of the case, with `truth_session`.
        truth: the reference's sample.
        names: the tensors that are recorded, for what lies in a gap widens the band behind it.
        count: how many runs; at least `replay.LEAST_RUNS` are taken.
    """
    count = max(count, replay.LEAST_RUNS)
    narrowed = {"trace": {name: truth["trace"][name] for name in names}}
    row_bytes = sum(value.nbytes for value in narrowed["trace"].values())
    portions = parted(np.arange(count), -(-count * row_bytes // PORTION) or 1)
    runs = [s for portion in portions for s in _errors_only(session, context, narrowed, len(portion))]
    contributed = [run["contributed"] for run in runs]
    own, total = replay.band(contributed), replay.band(run["total"] for run in runs)
    if session.info.dtype == "f32":
        own = _free_order(own, context.model.n_ffn)
    return Bands(own, total, replay.reach(contributed), count)


def _free_order(band: Mapping[str, Error], terms: int) -> dict[str, Error]:
    """A float32 band wide enough for sums in any order.

    Honest runs sum as this machine's library does, in blocks. A plain loop over n terms is as honest; its error
    grows with sqrt(n): measured 2.5 bands at n = 512 and 8.1 at n = 3072. A format that is rounded far above
    float32's last bit does not see it.
    """
    wider = max(1.0, (terms / SUMMED) ** 0.5)
    return {
        name: Error(e.rms * wider, e.largest * wider, e.size, max(e.factor, replay.ULP) * wider, e.share * wider)
        for name, e in band.items()
    }


def _errors_only(session: Session, context: Context, truth: Sample, rows: int) -> list[Sample]:
    samples = collect(session, context, truth, rows)
    return [{key: sample[key] for key in ("contributed", "total")} for sample in samples]


def arrays_of(found: Bands) -> dict[str, Array]:
    """Bands as arrays that a file can hold; inverse of `bands_of`."""
    arrays: dict[str, Array] = {"facts": np.array([found.reach, found.runs])}
    for part in ("contributed", "total"):
        for name, error in getattr(found, part).items():
            arrays[f"{part}/{name}"] = np.stack([error.rms, error.largest, error.size])
            arrays[f"{part}/{name}/whole"] = np.array([error.factor, error.share])
    return arrays


def bands_of(arrays: Mapping[str, Array]) -> Bands:
    """Bands from arrays; inverse of `arrays_of`."""

    def errors(part: str) -> dict[str, Error]:
        names = [n.removeprefix(part) for n in arrays if n.startswith(part) and not n.endswith("/whole")]
        return {n: Error(*arrays[part + n], *map(float, arrays[f"{part}{n}/whole"])) for n in names}

    reach, runs = arrays["facts"]
    return Bands(errors("contributed/"), errors("total/"), float(reach), int(runs))


def band_facts(found: Bands) -> dict[str, Any]:
    """What a record keeps of the bands: per tensor the median over tokens."""
    return {
        "runs": found.runs,
        "reach": found.reach,
        "tensors": list(found.contributed),
        "rms": [float(np.median(error.rms)) for error in found.contributed.values()],
        "largest": [float(np.median(error.largest)) for error in found.contributed.values()],
    }


@dataclass(frozen=True)
class Findings:
    """A sample in units of the honest bands.

    Attributes:
        order: every tensor that the truth records.
        own: (T,) contributed error by tensor.
        total: (T,) error against the truth by tensor.
        out: tensors out of their band, first to last.
    """

    order: list[str]
    own: Mapping[str, replay.Vector]
    total: Mapping[str, replay.Vector]
    out: list[Out]

    @property
    def untested(self) -> list[str]:
        """Tensors that no replay could judge."""
        return [name for name in self.order if name not in self.own]


def findings(got: Sample, truth: Sample, context: Context) -> Findings:
    """Compare a sample with the bands of the same recorded tensors.

    Raises:
        Unsupported: there are no honest runs to compare with.
    """
    if context.bands is None:
        raise Unsupported("the suite needs honest runs in the subject's number format")
    honest = cast(Bands, context.bands(tuple(got["trace"])))
    own = replay.ratios(got["contributed"], honest.contributed)
    order = list(truth["trace"])
    return Findings(order, own, replay.ratios(got["total"], honest.total), replay.out_of_band(order, own))


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """How many tensors are out of band, how far, and how many nobody could test.

    `out_of_band` is NaN, which no criterion passes, where not one tensor could be tested.
    """
    found = findings(got, truth, context)
    first = found.out[0] if found.out else None
    where = f"{place(first)}: {first.ratio:.4g} x honest" if first else ""
    return [
        Number("out_of_band", float(len(found.out)) if found.own else np.nan, "", where),
        _worst("worst_ratio", found.own),
        _worst("inherited_worst", found.total),
        Number("untested", float(len(found.untested)), "", shortened(found.untested)),
    ]


def _worst(name: str, by_tensor: Mapping[str, replay.Vector]) -> Number:
    if not by_tensor:
        return Number(name, np.nan, "x honest")
    tensor = max(by_tensor, key=lambda key: float(by_tensor[key].max()))
    token = int(np.argmax(by_tensor[tensor]))
    return Number(name, float(by_tensor[tensor][token]), "x honest", f"{tensor}, token {token}")


def place(out: Out) -> str:
    """Where a tensor left its band: "blocks.1.att.w, layer 1, token 3"."""
    layer = "" if out.layer is None else f", layer {out.layer}"
    return f"{out.tensor}{layer}, token {out.token}"


def shortened(names: Sequence[str], most: int = 6) -> str:
    """Some names, and how many there are besides."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """Every tensor's worst ratio, the first out of band, and what it looks like."""
    if got is truth:
        return
    found = findings(got, truth, context)
    first = found.out[0] if found.out else None
    gap: Gap = got["gaps"][first.tensor] if first else Gap()
    hinted = context.case.options.get("hints", True)  # they take as long as all the rest
    yield (
        "layers",
        {
            "tensors": found.order,
            "worst": [_top(found.own, name) for name in found.order],
            "first_token": [next((out.token for out in found.out if out.tensor == name), None) for name in found.order],
            "inherited": [_top(found.total, name) for name in found.order],
            "untested": found.untested,
            "limit": replay.LIMIT,
            "first": None if first is None else {**vars(first), "layer": first.layer, "spanned": list(gap.spanned)},
            "hints": _hints(first, found, got, truth, context) if first and hinted else [],
            "lacking": _lacking(got["gaps"]),
        },
    )


def _hints(first: Out, found: Findings, got: Sample, truth: Sample, context: Context) -> list[str]:
    """What the first tensor out of its band looks like."""
    name = first.tensor
    trace: dict[str, Array] = got["trace"]
    T = len(trace[name]) if trace[name].nbytes < SMALL else min(len(trace[name]), first.token + 4)
    cut = {other: value[None, :T] for other, value in trace.items()}
    reference, tokens = replayer(context), context.tokens[:T]
    prefix = name.rpartition(".")[0]
    block = [other for other in trace if other.rpartition(".")[0] == prefix]
    expected = {other: value[0] for other, value in reference.replay(cut, tokens, only=block).items()}
    assert context.bands is not None
    honest: Error = context.bands(tuple(trace)).contributed[name]
    seen = hints.Seen(
        name=name,
        got=cut[name][0],
        want=expected[name],
        truth=truth["trace"][name][:T],
        siblings={other.rpartition(".")[2]: value for other, value in expected.items() if other != name},
        misread={words: value[0] for words, value in reference.misread(cut, tokens, name).items()},
        allowed=replay.LIMIT * replay.allowed(honest.rms, replay.ULP * honest.size)[:T],
        heads=context.model.n_head,
        edge=context.case.options["edge"],
    )
    return [*hints.hints(seen), *_layers_hint(first, found, context.model.n_layer)]


def _layers_hint(first: Out, found: Findings, total: int) -> list[str]:
    """In which blocks the same tensor is out, where all blocks could be tested."""
    tested = {Out(name, 0, 0, 0).layer for name in found.own if Out(name, 0, 0, 0).short == first.short}
    layers = sorted(out.layer for out in found.out if out.short == first.short and out.layer is not None)
    words = hints.in_layers(layers, total, first.short) if len(tested) == total else ""
    return [words] if words else []


def _top(by_tensor: Mapping[str, replay.Vector], name: str) -> float | None:
    return float(by_tensor[name].max()) if name in by_tensor else None


def _lacking(gaps: Mapping[str, Gap]) -> list[str]:
    """Names that would make recorded tensors testable, most useful first."""
    wanted: dict[str, int] = {}
    for gap in gaps.values():
        for name in gap.lacking:
            wanted[name] = wanted.get(name, 0) + 1
    return sorted(wanted, key=lambda name: -wanted[name])
