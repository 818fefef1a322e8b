"""State: constant size, finite over long runs, the same after saving and restoring."""

from typing import Any

import numpy as np

from backends.base import Session, State, Want
from harness.formats import held_in, significant_bits
from harness.measures.base import Context, Evidence, Number, Sample

WORK = 2e12
"""FLOP that one long run may cost: a big model on a small machine goes less far, and the record says how far."""

DECAYS = "blocks.*.att.w"

ALONE = True


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """Run to each position, look at the state there; then save, restore and go on."""
    del truth, rows
    reach = WORK / (2 * context.model.parameters)
    positions = [p for p in context.case.options["positions"] if p <= max(reach, 16)]
    tokens = np.resize(context.tokens, positions[-1])
    handle: Any = None
    seen: list[State] = []
    for start, end in zip([0, *positions], positions, strict=False):
        handle = session.forward(tokens[start:end], handle, Want(logits="none", state=True)).state
        seen.append(session.export_state(handle))
    sample: Sample = {
        "positions": positions,
        "states": seen,
        "restored": _restored(session, handle, seen[-1], tokens[:8]),
    }
    sample["zero"] = _zero(session, seen[-1], tokens[:8])
    if "trace" in session.info.abilities:
        trace = session.forward(tokens[:64], want=Want(trace=(DECAYS,))).trace
        if trace:  # numpy's extremes keep a NaN, Python's lose it
            sample["decay"] = (
                float(np.min([w.min() for w in trace.values()])),
                float(np.max([w.max() for w in trace.values()])),
            )
    return [sample]


def _restored(session: Session, handle: Any, saved: State, tokens: Any) -> float:
    """Largest logit difference between going on and going on from the saved state."""
    want = Want(logits="last", state=True)
    on = session.forward(tokens, handle, want).logits
    again = session.forward(tokens, session.import_state(saved), want).logits
    assert on is not None
    assert again is not None
    return float(np.max(np.abs(on.astype(np.float64) - again)))


def _zero(session: Session, shape: State, tokens: Any) -> float:
    """Largest logit difference between no state and a state of zeros."""
    fresh = session.forward(tokens).logits
    from_zero = session.forward(tokens, session.import_state(shape.zeros())).logits
    assert fresh is not None
    assert from_zero is not None
    return float(np.max(np.abs(fresh.astype(np.float64) - from_zero)))


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """`growth` of the size from first to last position, `not_finite` entries, differences after restoring.

    `wkv_bits` are the significant bits that the WKV state uses; left out where too few entries tell.
    """
    del truth, context
    sizes = [state.nbytes for state in got["states"]]
    broken = sum(int((~np.isfinite(part)).sum()) for state in got["states"] for part in state.parts().values())
    numbers = [
        Number("bytes", float(sizes[-1]), "byte"),
        Number("growth", float(max(sizes) - min(sizes)), "byte", f"up to position {got['positions'][-1]}"),
        Number("not_finite", float(broken)),
        Number("restored_max_abs", got["restored"], "logit"),
        Number("zero_max_abs", got["zero"], "logit"),
    ]
    wkv = got["states"][-1].wkv
    if bits := significant_bits(wkv):
        held = held_in(wkv)
        numbers.append(Number("wkv_bits", float(bits), "bit", f"every entry fits into {held}" if held else ""))
    if "decay" in got:
        numbers += [Number("decay_min", got["decay"][0]), Number("decay_max", got["decay"][1])]
    return numbers


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """Size and magnitude by position."""
    del truth, context
    memories = [state.wkv if state.wkv.size else state.extra["memory"][:, :, :2] for state in got["states"]]
    rms = [float(np.sqrt(np.mean(memory.astype(np.float64) ** 2))) for memory in memories]
    yield (
        "state",
        {
            "bytes": got["states"][-1].nbytes,
            "shapes": {name: list(part.shape) for name, part in got["states"][-1].parts().items()},
            "positions": got["positions"],
            "bytes_at": [state.nbytes for state in got["states"]],
            "rms": rms,
        },
    )
