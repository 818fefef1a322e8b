"""Each engine that is installed against the float64 reference, on random checkpoints it opens by itself."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Ids, Session, Want
from backends.checkpoint import open_checkpoint
from backends.errors import BackendError, InputError
from backends.gguf_writer import save_gguf
from tests.backends.feeding import F32_BAND, assert_within, fed, ids_for, logits_of
from tests.backends.random_family import Shape, random_model
from tests.backends.random_model import random_rwkv7

SHAPE = Shape(C=128, N=64, L=3, V=256)
IDS: Ids = ids_for(40, SHAPE.V, seed=5)

SERVED = [
    *(("official", version) for version in ("4", "5.0", "5.1", "5.2", "6", "7", "7a")),
    ("llama-cpp", "6"),
    ("llama-cpp", "7"),
    ("hf", "7"),
]


def needed(backend: str) -> None:
    """Skip, in the registry's own words, where an engine is not installed."""
    reason = registry.find(backend).available()
    if reason:
        pytest.skip(f"{backend}: {reason}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("engines")
    for version in {version for _, version in SERVED}:
        torch.save(random_model(version, SHAPE), made / f"{version}.pth")
    return made


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Session, Session]]:
    """An engine and the reference on one file."""
    backend, version = request.param
    needed(backend)
    with (
        open_checkpoint(str(folder / f"{version}.pth")) as weights,
        registry.open_session(registry.parse("reference-f64"), weights, threads=1) as truth,
        registry.open_session(registry.parse(backend), weights, threads=1) as session,
    ):
        yield session, truth


each = pytest.mark.parametrize("pair", SERVED, ids="-".join, indirect=True)


@each
def test_logits_of_both_ways_of_feeding(pair: tuple[Session, Session]) -> None:
    session, truth = pair
    want = truth.forward(IDS, want=Want("all")).logits
    assert want is not None
    found = session.forward(IDS, want=Want("all")).logits
    assert found is not None
    assert_within(found, want, F32_BAND)
    last = session.forward(IDS).logits
    assert last is not None
    assert_within(last[:, 0], want[:, -1], F32_BAND)
    if "state" in session.info.abilities:
        assert_within(logits_of(fed(session, IDS, [1, 17, 1, 21])), want, F32_BAND)


@each
def test_states_have_the_agreed_layout_and_come_back(pair: tuple[Session, Session]) -> None:
    session, truth = pair
    if "state" not in session.info.abilities:
        assert session.info.model.version == "4"
        return
    handle = session.forward(IDS, want=Want("none", state=True)).state
    state = session.export_state(handle)
    want = truth.export_state(truth.forward(IDS, want=Want("none", state=True)).state).parts()
    for name, part in state.parts().items():
        assert_within(part, want[name], F32_BAND)
    before = session.forward([3, 4], handle).logits
    assert before is not None
    again = session.forward([3, 4], session.import_state(state)).logits
    assert again is not None
    np.testing.assert_array_equal(again, before)
    np.testing.assert_array_equal(session.forward([3, 4], handle).logits, before)
    fresh = logits_of(session.forward(IDS, session.import_state(state.zeros())))
    assert_within(fresh, logits_of(session.forward(IDS)), F32_BAND)


@each
def test_the_engine_is_named_with_its_version(pair: tuple[Session, Session]) -> None:
    info = pair[0].info
    assert info.backend in registry.table()
    assert all(any(letter.isdigit() for letter in version) for version in info.packages.values())
    assert info.attention


def test_official_speaks_the_world_vocabulary(tmp_path: Path) -> None:
    needed("official")
    torch.save(random_rwkv7(C=64, N=64, L=1, V=65536), tmp_path / "m.pth")
    with (
        open_checkpoint(str(tmp_path / "m.pth")) as weights,
        registry.open_session(registry.parse("official@bf16"), weights, threads=1) as session,
    ):
        assert session.info.dtype == "bf16"
        assert session.tokenizer is not None
        text = "Hello, 世界\n\n\x00"
        assert session.tokenizer.decode_bytes([*session.tokenizer.encode(text), 0]) == text.encode()
        logits = session.forward([1, 2, 3]).logits
        assert logits is not None
        assert logits.shape == (1, 1, 65536)


def test_official_writes_a_file_for_a_model_made_by_code() -> None:
    needed("official")
    with (
        open_checkpoint("conformance") as weights,
        registry.open_session(registry.parse("official:cpu fp32"), weights, threads=1) as session,
    ):
        assert "strategy 'cpu fp32'" in session.info.attention
        assert any("was written by this project" in note for note in session.info.notes)


def test_a_strategy_that_the_package_refuses_is_told_in_words(folder: Path) -> None:
    needed("official")
    with (
        open_checkpoint(str(folder / "5.2.pth")) as weights,
        pytest.raises(BackendError, match=r"load: python\S* answered .*the package refuses strategy 'cuda fp16'"),
    ):
        registry.open_session(registry.parse("official:cuda fp16"), weights, threads=1)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_llama_cpp_on_the_users_own_file(folder: Path, tmp_path: Path, dtype: str) -> None:
    needed("llama-cpp")
    with open_checkpoint(str(folder / "7.pth")) as weights:
        path = save_gguf(weights, tmp_path / "mine.gguf", dtype)
        with (
            registry.open_session(registry.parse(f"llama-cpp:{path}"), weights, threads=1) as session,
            registry.open_session(registry.parse("reference-f64"), weights) as truth,
        ):
            assert session.info.dtype == dtype
            assert any(f"mine.gguf, its parameters are stored as {dtype.upper()}" in n for n in session.info.notes)
            got, want = (s.forward(IDS, want=Want("all")).logits for s in (session, truth))
            assert got is not None
            assert want is not None
            assert 1e-5 < np.abs(got - want).max() < (0.02 if dtype == "f16" else 0.2)


def test_llama_cpp_refuses_the_file_of_another_model(folder: Path, tmp_path: Path) -> None:
    needed("llama-cpp")
    other = tmp_path / "other.pth"
    torch.save(random_rwkv7(C=64, N=64, L=2, V=256), other)
    with open_checkpoint(str(other)) as small:
        path = save_gguf(small, tmp_path / "other.gguf", "f32")
    with open_checkpoint(str(folder / "7.pth")) as weights:
        with pytest.raises(
            InputError, match=r"another model than --model .*: embedding_length 64 instead of 128, block_c"
        ):
            registry.open_session(registry.parse(f"llama-cpp:{path}"), weights)
        with pytest.raises(InputError, match=r"missing\.gguf cannot be read"):
            registry.open_session(registry.parse("llama-cpp:missing.gguf"), weights)
    with (
        open_checkpoint(str(folder / "6.pth")) as weights,
        pytest.raises(InputError, match="holds rwkv7, --model is rwkv6"),
    ):
        registry.open_session(registry.parse(f"llama-cpp:{path}"), weights)


def test_hf_opens_a_folder_as_it_is(folder: Path, tmp_path: Path) -> None:
    needed("hf")
    from backends.convert import save

    with open_checkpoint(str(folder / "7.pth")) as weights:
        save(weights, tmp_path / "model", "hf")
    with (
        open_checkpoint(str(tmp_path / "model")) as weights,
        registry.open_session(registry.parse("hf"), weights, threads=1) as session,
        registry.open_session(registry.parse("reference-f64"), weights) as truth,
    ):
        got, want = (logits_of(s.forward(np.stack([IDS, IDS[::-1]]), want=Want("all"))) for s in (session, truth))
        assert_within(got, want, F32_BAND)
