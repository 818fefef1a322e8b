"""One contract, every registered backend. A backend that is not available is skipped in words."""

import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import ABILITIES, Array, Ids, Output, Session, State, Want
from backends.errors import BackendError, Unsupported
from backends.fault_list import EQUIVALENTS
from backends.recorder import Recorder
from backends.tape import Tape
from backends.weights import Weights
from tests.backends.random_model import as_weights, random_rwkv7

PORT = Path(__file__).with_name("numpy_server.py")

ARGUMENTS = {
    "honest": "honest:3@f32",
    "fault": f"fault:{next(iter(EQUIVALENTS))}",
    "process": f"process:{shlex.join([sys.executable, str(PORT)])}",
    "recorded": "recorded:",
}
"""How a backend that takes an argument is written in these tests; a true equivalent keeps the whole contract."""

RECORDED = "torch-cpu-f32"
"""What is recorded while it passes the contract; so passes the recorder, and so has its recording to."""

RANDOM = {"honest"}
"""Backends that round at random: their runs agree within a band, never bit for bit."""

BAND = 1e-4  # of logits with standard deviation 1, any two honest float32 ways to compute them


def _subjects() -> list[str]:
    return [ARGUMENTS.get(name, name) for name in registry.table()]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return as_weights(random_rwkv7(C=64, N=16, L=3, V=97))


@pytest.fixture(scope="module", params=_subjects())
def session(
    request: pytest.FixtureRequest, weights: Weights, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")  # the contract is the same and nobody waits for a compiler
        written = request.param
        if written == ARGUMENTS["recorded"]:
            written += str(recording(tmp_path_factory.mktemp("recording"), weights))
        spec = registry.parse(written)
        reason = registry.find(spec.backend).available()
        if reason:
            pytest.skip(f"{spec.backend}: {reason}")
        with registry.open_session(spec, weights, threads=1) as opened:
            yield opened


def recording(folder: Path, weights: Weights) -> Path:
    """Everything that the tests below ask of a session, recorded while they pass."""
    tape = Tape(folder)
    with registry.open_session(registry.parse(RECORDED), weights, threads=1) as opened:
        session = Recorder(opened, tape)
        given = {"session": session, "weights": weights, "tokens": prompt()}
        for test, values in _asking():
            wanted = inspect.signature(test).parameters
            test(**{name: value for name, value in given.items() if name in wanted} | values)
        info = {"device": "cpu", "dtype": "f32", "attention": opened.info.attention, "packages": opened.info.packages}
        tape.finish({"subject": RECORDED, "info": {**info, "abilities": sorted(opened.info.abilities)}})
    return folder


def _asking() -> Iterator[tuple[Callable[..., None], dict[str, Any]]]:
    """Every test of a session, with the values of its parameters."""
    for name, test in list(globals().items()):
        if name.startswith("test_") and "session" in inspect.signature(test).parameters:
            marks = [mark.args for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
            for values in product(*(values for _, values in marks)):
                yield test, dict(zip((key for key, _ in marks), values, strict=True))


def prompt() -> Ids:
    return np.random.default_rng(1).integers(0, 97, 70)


@pytest.fixture
def tokens() -> Ids:
    return prompt()


def band(session: Session) -> float:
    return 0.25 if session.info.dtype in ("bf16", "f16") else BAND


def exact(session: Session) -> bool:
    return session.info.backend not in RANDOM


def logits(out: Output) -> Array:
    assert out.logits is not None
    return out.logits


def test_every_backend_is_under_test() -> None:
    assert {registry.parse(text).backend for text in _subjects()} == set(registry.table())


def test_info_is_filled(session: Session, weights: Weights) -> None:
    info = session.info
    assert info.backend in registry.table()
    assert info.model == weights.facts
    assert info.abilities <= set(ABILITIES)
    assert info.attention
    assert info.packages
    assert info.packages.get("torch", torch.__version__) == torch.__version__
    assert info.device.partition(":")[0] in registry.find(info.backend).devices
    assert info.dtype in registry.find(info.backend).dtypes


def test_shapes_of_logits(session: Session, tokens: Array) -> None:
    assert session.forward(tokens, want=Want(logits="none")).logits is None
    assert logits(session.forward(tokens)).shape == (1, 1, 97)
    assert logits(session.forward(tokens, want=Want(logits="all"))).shape == (1, 70, 97)
    assert logits(session.forward(tokens[:1])).shape == (1, 1, 97)
    batch = np.stack([tokens, tokens[::-1]])
    assert logits(session.forward(batch, want=Want(logits="all"))).shape == (2, 70, 97)
    assert np.issubdtype(logits(session.forward(tokens)).dtype, np.floating)


def test_last_is_the_last_of_all(session: Session, tokens: Array) -> None:
    last = logits(session.forward(tokens))[:, 0]
    every = logits(session.forward(tokens, want=Want(logits="all")))[:, -1]
    np.testing.assert_allclose(last, every, atol=band(session))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 63, 64, 65])
def test_chunks_are_one_shot(session: Session, tokens: Array, size: int) -> None:
    whole = session.forward(tokens, want=Want(logits="all", state=True))
    pieces, handle = [], None
    for start in range(0, len(tokens), size):
        out = session.forward(tokens[start : start + size], handle, Want(logits="all", state=True))
        pieces.append(logits(out))
        handle = out.state
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), logits(whole), atol=band(session))
    ours, theirs = session.export_state(handle).parts(), session.export_state(whole.state).parts()
    for name, part in theirs.items():
        np.testing.assert_allclose(ours[name], part, atol=10 * band(session), err_msg=name)


def test_rows_of_a_batch_are_single_rows(session: Session, tokens: Array) -> None:
    batch = np.stack([tokens, np.roll(tokens, 1), np.roll(tokens, 2)])
    together = logits(session.forward(batch, want=Want(logits="all")))
    for row, alone in zip(together, batch, strict=True):
        np.testing.assert_allclose(row, logits(session.forward(alone, want=Want(logits="all")))[0], atol=band(session))


def test_state_is_exported_in_the_agreed_layout(session: Session, tokens: Array) -> None:
    out = session.forward(np.stack([tokens, tokens]), want=Want(logits="none", state=True))
    state = session.export_state(out.state)
    assert state.att_shift.shape == (3, 2, 64)
    assert state.wkv.shape == (3, 2, 4, 16, 16)
    assert state.ffn_shift.shape == (3, 2, 64)
    assert all(np.issubdtype(part.dtype, np.floating) for part in state.parts().values())


def test_state_means_the_same_everywhere(session: Session, weights: Weights, tokens: Array) -> None:
    """Value rows, key columns: a transposed state would pass every test that stays inside one backend."""
    with registry.open_session(registry.parse("reference-f64"), weights) as truth:
        want = truth.export_state(truth.forward(tokens, want=Want(state=True)).state)
    got = session.export_state(session.forward(tokens, want=Want(state=True)).state)
    for name, part in want.parts().items():
        np.testing.assert_allclose(got.parts()[name], part, atol=10 * band(session), err_msg=name)


def test_export_and_import_keep_every_bit(session: Session, tokens: Array) -> None:
    out = session.forward(tokens, want=Want(state=True))
    saved = session.export_state(out.state)
    again = session.export_state(session.import_state(saved))
    for name, part in saved.parts().items():
        np.testing.assert_array_equal(again.parts()[name], part)
    on, restored = session.forward(tokens[:3], out.state), session.forward(tokens[:3], session.import_state(saved))
    if exact(session):
        np.testing.assert_array_equal(logits(on), logits(restored))


def test_the_input_state_is_never_written_to(session: Session, tokens: Array) -> None:
    handle = session.forward(tokens, want=Want(state=True)).state
    before = {name: part.copy() for name, part in session.export_state(handle).parts().items()}
    first = session.forward(tokens[:1], handle, Want(state=True))
    session.forward(tokens[:20], handle, Want(state=True))
    for name, part in session.export_state(handle).parts().items():
        np.testing.assert_array_equal(part, before[name], err_msg=name)
    if exact(session):
        np.testing.assert_array_equal(logits(session.forward(tokens[:1], handle)), logits(first))


def test_no_state_is_a_state_of_zeros(session: Session, tokens: Array) -> None:
    shape = session.export_state(session.forward(tokens, want=Want(state=True)).state)
    zeros = State(np.zeros_like(shape.att_shift), np.zeros_like(shape.wkv), np.zeros_like(shape.ffn_shift))
    fresh, imported = session.forward(tokens), session.forward(tokens, session.import_state(zeros))
    np.testing.assert_allclose(logits(fresh), logits(imported), atol=0 if exact(session) else band(session))


def test_a_repeat_gives_the_same_bits(session: Session, tokens: Array) -> None:
    if not exact(session):
        pytest.skip(f"{session.info.backend} rounds at random")
    np.testing.assert_array_equal(logits(session.forward(tokens)), logits(session.forward(tokens)))


def test_greedy_generation_follows_the_logits(session: Session, tokens: Array) -> None:
    ids = [int(step[0]) for step in session.generate(tokens, max_new_tokens=6)]
    assert len(ids) == 6
    fed = np.concatenate([tokens, ids[:-1]])
    every = logits(session.forward(fed, want=Want(logits="all")))[0, len(tokens) - 1 :]
    chosen = every[np.arange(6), ids]
    assert (every.max(axis=1) - chosen <= 2 * band(session)).all()


def test_generation_of_rows_stop_ids_and_samplers(session: Session, tokens: Array) -> None:
    if not exact(session):
        pytest.skip(f"{session.info.backend} rounds at random")
    free = [int(step[0]) for step in session.generate(tokens, max_new_tokens=5)]
    stopped = [int(step[0]) for step in session.generate(tokens, max_new_tokens=5, stop=[free[2]])]
    assert stopped == free[: free.index(free[2])]
    assert list(session.generate(tokens, max_new_tokens=0)) == []
    rows = list(session.generate(np.stack([tokens, tokens]), max_new_tokens=3))
    assert [row.tolist() for row in rows] == [[i, i] for i in free[:3]]
    lowest = session.generate(tokens, sampler=lambda z: z.argmin(axis=-1).astype(np.int64), max_new_tokens=1)
    assert int(next(lowest)[0]) == int(logits(session.forward(tokens)).argmin())


@pytest.mark.parametrize("tokens", [[], [[[1]]], [97], [-1], [0.5], ["a"]], ids=str)
def test_wrong_tokens_are_refused_in_words(session: Session, tokens: list[object]) -> None:
    with pytest.raises(BackendError, match=r"token(s| ids) must"):
        session.forward(tokens)  # type: ignore[arg-type]


def test_an_ability_that_is_missing_is_unsupported(session: Session, tokens: Array) -> None:
    if "trace" in session.info.abilities:
        trace = session.forward(tokens[:4], want=Want(trace=("blocks.1.att.w", "head"))).trace
        assert set(trace) == {"blocks.1.att.w", "head"}
        assert trace["blocks.1.att.w"].shape == (1, 4, 64)
    else:
        with pytest.raises(Unsupported, match="no ability 'trace'"):
            session.forward(tokens, want=Want(trace=("*",)))


def test_nan_in_a_weight_reaches_the_logits(session: Session) -> None:
    if session.info.backend == "recorded":
        pytest.skip("a recording answers for the checkpoint that it was made of, and no other")
    tensors = random_rwkv7(C=64, N=16, L=2, V=97)
    tensors["blocks.1.att.key.weight"][3, 5] = torch.nan
    spec = registry.parse(ARGUMENTS.get(session.info.backend, session.info.backend))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        with registry.open_session(spec, as_weights(tensors), threads=1) as broken:
            assert np.isnan(logits(broken.forward([1, 2, 3], want=Want(logits="all")))).any()


def test_fetch_false_leaves_the_logits_on_the_device(session: Session, tokens: Array) -> None:
    out = session.forward(tokens, want=Want(logits="last", state=True, fetch=False))
    session.sync()
    assert out.logits is None
    assert out.state is not None


def test_closing_twice_is_fine(weights: Weights) -> None:
    session = registry.open_session(registry.parse("torch-cpu-f32"), weights)
    session.close()
    session.close()
