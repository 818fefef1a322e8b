"""The kit: a folder that a port in any language consumes, and the folder that it writes back.

model.safetensors     the checkpoint: official names, official shapes
expected.safetensors  what the float64 truth gives: logits, state, every named tensor
bands.safetensors     how far honest arithmetic of a number format lands from it
*.bin                 tokens, logits and state once more, as raw little-endian numbers
manifest.json         tokens, sizes; shape, number format, file and byte offset of every tensor
README.md             the equations, what to dump, how it is judged
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.base import Array, Ids, ModelFacts, Session, Want
from backends.errors import InputError
from harness import replay
from harness.diagnose import EDGE, PROMPT, RUNS, TOKENS
from harness.formulas import formulas
from harness.measures.base import parted
from harness.replay import Error

if TYPE_CHECKING:
    from backends.weights import Weights

FORMAT = 1
MANIFEST, CHECKPOINT, EXPECTED, BANDS = (
    "manifest.json",
    "model.safetensors",
    "expected.safetensors",
    "bands.safetensors",
)
FORMATS = ("f32", "bf16", "f16")
"""Number formats that bands are made for."""

LARGE = 64 << 20
"""Bytes of named tensors that a kit holds; a model that needs more gets logits and state only."""

PORTION = 256 << 20
"""Bytes of traces of honest runs that may lie in memory at once."""

SHORT = {"float64": "f64", "float32": "f32", "int32": "i32"}

Arrays = dict[str, Array]


def make(model: str, out: Path, *, tokens: int = TOKENS, runs: int = RUNS, dtype: str = "f32") -> Path:
    """Write a kit.

    Args:
        model: any checkpoint.
        out: the folder; it must be new, empty, or a kit, which is replaced.
        tokens: length of the prompt.
        runs: honest runs that bands are taken from.
        dtype: number format of the checkpoint's file.

    Returns:
        `out`.

    Raises:
        InputError: the folder belongs to somebody else or cannot be written, or the checkpoint cannot be opened.
    """
    from backends.checkpoint import open_checkpoint
    from backends.convert import save

    refuse_foreign(out)
    with open_checkpoint(model) as weights, replacing(out) as part:
        save(weights, part / CHECKPOINT, "safetensors", dtype)
        ids = prompt(weights, tokens)
        expected, bands = _measured(weights, ids, runs)
        facts = {
            "kit": FORMAT,
            "model": asdict(weights.facts),
            "checkpoint": CHECKPOINT,
            "tokens": ids.tolist(),
            "calls": calls(len(ids)),
            "honest_runs": runs,
        }
        _write(part, facts, expected, bands)
    return out


def calls(tokens: int) -> list[int]:
    """How many tokens each call is fed: two, so that a state is handed over inside."""
    edge = min(EDGE, tokens // 2)
    return [edge, tokens - edge] if edge else [tokens]


def prompt(weights: "Weights", tokens: int) -> Ids:
    """Ids of the beginning of the long prompt."""
    from backends.tokenizer import for_model
    from harness.ledger import encode
    from harness.suite import prompts

    ids = encode(prompts()[PROMPT].text, for_model(weights.facts), weights.facts.vocab_size)
    return np.resize(ids, tokens)


def outputs(session: Session, batch: Ids, trace: tuple[str, ...]) -> Iterator[Arrays]:
    """Logits, state and named tensors of every row (B, T), fed in the kit's calls.

    What a session cannot give is left out: without "state" it is fed in one call.
    """
    able = session.info.abilities
    keep, every = "state" in able, "logits-all" in able
    traced = trace if "trace" in able else ()
    parts: list[Mapping[str, Array]] = []
    logits: list[Array] = []
    state: Any = None
    for piece in np.split(batch, np.cumsum(calls(batch.shape[1]))[:-1], axis=1) if keep else [batch]:
        out = session.forward(piece, state, Want("all" if every else "last", state=keep, trace=traced))
        assert out.logits is not None
        parts.append(out.trace)
        logits.append(out.logits)
        state = out.state
    whole = {"logits": np.concatenate(logits, axis=1) if every else logits[-1]}
    whole |= {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    states = session.export_state(state).parts() if keep else {}
    for row in range(len(batch)):
        yield {
            **{name: value[row] for name, value in whole.items()},
            **{f"state.{name}": value[:, row] for name, value in states.items()},
        }


def _measured(weights: "Weights", ids: Ids, runs: int) -> tuple[Arrays, dict[str, dict[str, Error]]]:
    """What the truth gives, and number format -> tensor -> how far honest runs land from it."""
    from backends.registry import open_session, parse

    with ExitStack() as stack:
        opened = partial(_opened, stack, weights, open_session, parse)
        truth = opened("reference-f64")
        names = tuple(name for name in _names(truth) if not name.endswith(("att.state", "head")))
        expected = next(outputs(truth, ids[None], names))
        if sum(expected[name].nbytes // 2 for name in names) > LARGE:
            names = ()
            expected = next(outputs(truth, ids[None], names))
        bands = {dtype: _band(opened(f"honest:0@{dtype}"), ids, expected, names, runs) for dtype in FORMATS}
    return expected, bands


def _opened(stack: ExitStack, weights: "Weights", open_session: Any, parse: Any, name: str) -> Session:
    session: Session = stack.enter_context(open_session(parse(name), weights, 1))
    return session


def _names(session: Session) -> list[str]:
    return list(session.forward([0], want=Want(logits="last", trace=("*",))).trace)


def _band(session: Session, ids: Ids, expected: Arrays, names: tuple[str, ...], runs: int) -> dict[str, Error]:
    row_bytes = sum(value.nbytes for value in expected.values()) // 2
    portions = parted(np.arange(runs), -(-runs * row_bytes // PORTION) or 1)
    batches = (np.tile(ids, (len(portion), 1)) for portion in portions)
    return replay.band(replay.errors(found, expected) for batch in batches for found in outputs(session, batch, names))


def _write(part: Path, facts: dict[str, Any], expected: Arrays, bands: Mapping[str, Mapping[str, Error]]) -> None:
    precise = ("logits", "state.")  # in float64; named tensors in float32, whose rounding no band is below
    stored = {n: v.astype("<f8" if n.startswith(precise) else "<f4") for n, v in expected.items()}
    rows = _safetensors(part / EXPECTED, stored)
    _safetensors(part / BANDS, _flat(bands))
    ids = np.asarray(facts["tokens"], dtype="<i4")
    raw = {"tokens": ids, **{n: v.astype("<f4") for n, v in expected.items() if n.startswith(precise)}}
    for name, value in raw.items():
        (part / f"{name}.bin").write_bytes(value.tobytes())
    facts["raw"] = [_row(name, value, f"{name}.bin", 0) for name, value in raw.items()]
    facts["tensors"] = [rows[name] for name in expected]
    facts["bands"] = {dtype: {n: _typical(e) for n, e in found.items()} for dtype, found in bands.items()}
    (part / MANIFEST).write_text(_dumped(facts), encoding="utf-8")
    (part / "README.md").write_text(_readme(facts), encoding="utf-8")


def _typical(error: Error) -> dict[str, float]:
    """Medians over tokens, for reading; `bands.safetensors` has every token."""
    return {"rms": float(np.median(error.rms)), "largest": float(np.median(error.largest))}


def _flat(bands: Mapping[str, Mapping[str, Error]]) -> Arrays:
    return {
        f"{dtype}/{name}/{part}": np.atleast_1d(np.asarray(value, dtype="<f8"))
        for dtype, found in bands.items()
        for name, error in found.items()
        for part, value in vars(error).items()
    }


def _safetensors(path: Path, arrays: Arrays, metadata: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Write a file; returns name -> where its raw numbers stand in it."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path, metadata)
    path.chmod(0o644)  # the library makes files that nobody else may read
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    begin = {name: 8 + length + row["data_offsets"][0] for name, row in header.items() if name != "__metadata__"}
    return {name: _row(name, value, path.name, begin[name]) for name, value in arrays.items()}


def _row(name: str, value: Array, file: str, offset: int) -> dict[str, Any]:
    kind = SHORT[value.dtype.name]
    return {"name": name, "shape": list(value.shape), "dtype": kind, "file": file, "offset": offset}


def _dumped(facts: Mapping[str, Any]) -> str:
    """JSON with one key, or one tensor, a line."""
    lines = []
    for key, value in facts.items():
        rows = ",\n  ".join(json.dumps(row) for row in value) if key in ("raw", "tensors") else ""
        lines.append(f' "{key}": ' + (f"[\n  {rows}\n ]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _readme(facts: Mapping[str, Any]) -> str:
    model = facts["model"]
    names = {n["name"].split(".", 2)[-1] for n in facts["tensors"] if n["name"].startswith("blocks.")}
    there = {n["name"] for n in facts["tensors"]} | names | {"att.state", "head"}
    known = formulas(str(model["version"])).items()
    rows = [f"| `{n}` | {f.shape} | {f.formula} |" for n, f in known if n in there or not names]
    sizes = {key: model[key] for key in ("n_layer", "n_embd", "n_head", "head_size", "n_ffn", "vocab_size", "name")}
    ranks = ", ".join(f"{name} {rank}" for name, rank in model["ranks"].items())
    text = (files("harness") / "kit_readme.md").read_text(encoding="utf-8")
    calls_ = " and ".join(str(n) for n in facts["calls"])
    return Template(text).substitute(sizes, ranks=ranks, T=len(facts["tokens"]), calls=calls_, tensors="\n".join(rows))


def record(kit: Path, session: Session, out: Path, fingerprint: str = "") -> Path:
    """Write what a backend gives on a kit's prompt as the dump that a port would write.

    Args:
        kit: the kit's folder.
        session: of the backend, on the kit's checkpoint.
        fingerprint: of the checkpoint, so that the dump is never taken for one of another.
        out: a new or empty folder, or a dump, which is replaced.

    Raises:
        InputError: no kit, or the folder cannot be written.
    """
    facts = manifest(kit)
    refuse_foreign(out)
    with replacing(out) as part:
        ids = np.asarray(facts["tokens"], dtype=np.int64)
        found = next(outputs(session, ids[None], ("*",)))
        found = {n: v.astype("<f8" if v.dtype == np.float64 else "<f4") for n, v in found.items() if n != "head"}
        rows = _safetensors(part / "dump.safetensors", found)
        told = {"dump": FORMAT, "program": session.info.backend, "dtype": session.info.dtype, "tokens": facts["tokens"]}
        told |= {"fingerprint": fingerprint} if fingerprint else {}
        (part / MANIFEST).write_text(_dumped({**told, "tensors": list(rows.values())}), encoding="utf-8")
    return out


def manifest(kit: Path) -> dict[str, Any]:
    """A kit's manifest.

    Raises:
        InputError: the folder is no kit, or one of another format.
    """
    found = _told(kit)
    if found.get("kit") != FORMAT:
        raise InputError(f"{kit} is no kit of format {FORMAT}; `python -m harness kit --out DIR` writes one.")
    return found


def is_kit(path: Path) -> bool:
    """Whether a folder is a kit."""
    return "kit" in _told(path)


def facts_of(found: Mapping[str, Any]) -> ModelFacts:
    """Sizes of a kit's checkpoint."""
    return ModelFacts(**found["model"])


def _told(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds what nobody here has written.

    Raises:
        InputError: it does.
    """
    told = _told(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not {"kit", "dump", "recording"} & set(told))):
        raise InputError(
            f"{out} holds something else: give a new folder, an empty one, or an earlier kit, dump or recording."
        )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well and vanishes when it does not."""
    part, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.replace(old)
        part.replace(out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}.") from None
    finally:
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
