"""Recordings: bit by bit what was answered, words for what was not asked, and damage told in one line."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from backends import registry
from backends.base import Array, Ids, Output, Session, State, Want
from backends.errors import BackendError, InputError, Unsupported, UsageError
from backends.recorded import RecordedSession, says
from backends.recorder import Recorder
from backends.tape import Tape
from backends.weights import Weights
from tests.backends.recordings import Chance, V, everything, played, recorded, refused, same

# ---- the same answers -------------------------------------------------------------------------


def test_every_call_comes_back_bit_by_bit(tmp_path: Path, weights: Weights, live: Session) -> None:
    expected = everything(live)
    assert same(recorded(tmp_path, weights, live, everything), expected)
    with played(tmp_path, weights) as session:
        assert same(everything(session), expected)
        assert same(everything(session), expected), "and again"
        assert session.info.abilities == {"logits-all", "state", "trace", "batch"}, "nobody replays a recording"
        assert session.info.notes[0].startswith("a recording of torch-cpu-f32, made 2026-01-01")
        assert session.info.notes[-1] == "as it was"
        assert session.info.model == weights.facts
        assert not session.timed


class Breaks(Chance):
    """Breaks in another way at every call."""

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        wrong = {
            1: Unsupported("not today"),
            2: InputError("no file"),
            3: ValueError("lost\nit"),
            4: BackendError("no"),
        }
        if int(tokens[0, 0]) in wrong:
            raise wrong[int(tokens[0, 0])]
        return super()._forward(tokens, state, want)

    def import_state(self, state: State) -> Any:
        raise BackendError("of another model")

    def generate(self, *arguments: Any, **named: Any) -> Iterator[Ids]:
        yield np.array([7])
        raise RuntimeError("died")


def test_what_a_call_broke_with_is_its_answer(tmp_path: Path, weights: Weights) -> None:
    state = Chance(weights).export_state(1)

    def broken(session: Session) -> list[str]:
        heard = []
        for ask in (*(partial(session.forward, [n]) for n in (1, 2, 3, 4)), partial(session.import_state, state)):
            with pytest.raises(Exception, match=r"\w") as seen:
                ask()
            heard.append(f"{seen.type.__name__} {' '.join(str(seen.value).split())}")
        steps = session.generate([5], max_new_tokens=3)
        assert next(steps).tolist() == [7]
        with pytest.raises(Exception, match="died"):
            next(steps)
        return heard

    then = recorded(tmp_path, weights, Breaks(weights), broken)
    assert then[2] == "ValueError lost it"
    with played(tmp_path, weights) as session:
        now = broken(session)
    assert now == [*then[:2], "BackendError ValueError: lost it", *then[3:]]


class Knows:
    """A tokenizer and a sampler in one."""

    name, vocab_size, semantics = "knows", V, "candle"

    def encode(self, text: str) -> list[int]:
        if not text:
            raise BackendError("nothing to cut")
        return [ord(letter) % V for letter in text]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(ids) + b"\xff"

    def probabilities(self, logits: Array, prompt: Any, generated: Any, parameters: Any) -> Array:
        return np.asarray(logits * len(prompt) + parameters["temperature"], dtype=np.float64)

    def render(self, template: str, prompt: str, system: str, suffix: str) -> list[int]:
        return [len(template), len(prompt), len(system)]


def test_tokenizer_and_sampler_come_along(tmp_path: Path, weights: Weights) -> None:
    own = Chance(weights)
    own.tokenizer = own.sampling = Knows()

    def asked(session: Session) -> list[Any]:
        assert session.tokenizer
        assert session.sampling
        p = session.sampling.probabilities(np.ones(V, dtype=np.float32), [1, 2], [], {"temperature": 0.5})
        with pytest.raises(BackendError, match="nothing to cut"):
            session.tokenizer.encode("")
        rendered = session.sampling.render("chat", "hi", "", "")
        pieces = session.tokenizer.encode("a\ud800"), session.tokenizer.decode_bytes([1, 2])
        return [p.tolist(), rendered, *pieces, session.tokenizer.name, session.sampling.semantics]

    told = {"tokenizer": {"name": "knows", "vocab_size": V}, "sampling": "candle"}
    then = recorded(tmp_path, weights, own, asked, **told)
    with played(tmp_path, weights) as session:
        assert asked(session) == then
        assert getattr(session.tokenizer, "vocab_size", 0) == V
        assert session.tokenizer
        with pytest.raises(Unsupported, match="not recorded: encode 'b'"):
            session.tokenizer.encode("b")
        with pytest.raises(Unsupported, match=r"not recorded: decode of 1 tokens \[3\]"):
            session.tokenizer.decode_bytes([3])
        assert session.sampling
        with pytest.raises(Unsupported, match="not recorded: render"):
            session.sampling.render("raw", "hi", "", "")


# ---- what was not recorded --------------------------------------------------------------------


def test_what_was_not_asked_is_unsupported_in_words(tmp_path: Path, weights: Weights, live: Session) -> None:
    recorded(tmp_path, weights, live, everything)
    with played(tmp_path, weights) as session:
        state = session.forward([[1, 2], [3, 4]], want=Want("last", state=True)).state
        saved = session.export_state(
            session.forward([1, 2, 3], want=Want("all", True, ("blocks.1.att.w", "head"))).state
        )
        for ask, words in (
            (
                lambda: session.forward([1, 2]),
                r"forward of 2 tokens \[1, 2\] from the zero state, logits last; the rec",
            ),
            (
                lambda: session.forward([[1] * 9, [2] * 9]),
                r"9 tokens \[1, 1, 1, 1, 1, 1, \.\.\.\] in 2 rows from the zero",
            ),
            (lambda: session.forward([[9], [9]], state), "from a kept state.*holds what logits asked.*`record --suite"),
            (lambda: session.forward([1, 2, 3]), "logits last"),
            (lambda: next(session.generate([1], max_new_tokens=2)), r"generate of 1 tokens \[1\], 2 new ones"),
            (lambda: session.export_state(state), "export_state"),
            (lambda: session.import_state(saved.zeros()), "a state to go on from"),
            (lambda: list(session.generate([5, 6], lambda z: z.argmax(axis=-1), 2)), "these draws; another seed"),
        ):
            with pytest.raises(Unsupported, match=words):
                ask()
        with pytest.raises(BackendError, match="no handle of this recording"):
            session.forward([1], "a state")
    with pytest.raises(BackendError, match="no handle of this recorder"):
        Recorder(live, Tape(tmp_path)).forward([1], "a state")


def test_a_generation_that_was_given_up_ends_where_it_was(tmp_path: Path, weights: Weights, live: Session) -> None:
    def begun(session: Session) -> Array:
        steps = session.generate([1], max_new_tokens=5)
        found = next(steps)
        steps.close()  # type: ignore[attr-defined]
        return found

    then = recorded(tmp_path, weights, live, begun)
    with played(tmp_path, weights) as session:
        steps = session.generate([1], max_new_tokens=5)
        np.testing.assert_array_equal(next(steps), then)
        with pytest.raises(Unsupported, match="more than 1 tokens of generate"):
            next(steps)


def test_a_reference_that_is_recorded_still_replays(tmp_path: Path, live: Session) -> None:
    on = Recorder(live, Tape(tmp_path))
    trace = on.forward([1, 2], want=Want(trace=("*",))).trace
    name = "blocks.1.att.k_raw"
    assert set(on.replay(trace, [1, 2], only={name})) == {name}
    assert name in on.gaps(trace)
    assert on.misread(trace, [1, 2], name)
    on.close()


# ---- damage -----------------------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path: Path, weights: Weights, live: Session) -> Path:
    recorded(tmp_path, weights, live, lambda session: session.forward([1, 2]))
    return tmp_path


def changed(folder: Path, **told: Any) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **told}))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"recording": 2}, "of format 2; this version reads 1"),
        ({"fingerprint": "0" * 16}, "was recorded of M .fingerprint 0000000000000000., not of"),
        ({"fingerprint": "", "model": {"vocab_size": 5}}, "of a model with vocab_size 5; .* has 61"),
        ({"files": []}, "1 arrays are missing"),
        ({"files": ["arrays-9.safetensors"]}, r"its file arrays-9\.safetensors is missing"),
        ({"files": ["../arrays-1.safetensors"]}, "is missing"),
        ({"calls": [{"verb": "forward", "tokens": [[1]], "answers": []}]}, "damaged.*has no answer"),
        ({"calls": [{"verb": "dance", "answers": [{}]}]}, "damaged .KeyError"),
        ({"calls": [{"verb": "encode", "text": "a", "answers": [{}]}] * 2}, "damaged"),
        ({"calls": 3}, "damaged .TypeError"),
        ({"takes": [[[0, 7]]]}, "names one that is not there"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_line(sound: Path, weights: Weights, told: dict[str, Any], words: str) -> None:
    changed(sound, **told)
    refused(sound, weights, words)


def test_damaged_files_are_one_line(sound: Path, weights: Weights) -> None:
    file = sound / "arrays-1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(sound, weights, r"array [0-9a-f]{32} in arrays-1\.safetensors is not what it was")
    file.write_bytes(whole[:-9])
    refused(sound, weights, "damaged")
    file.unlink()
    refused(sound, weights, "is missing")
    (sound / "manifest.json").write_text('{"recording": 1, "calls"')
    refused(sound, weights, "damaged or not what its name says")
    refused(sound / "nowhere", weights, "no such file or folder")
    with pytest.raises(UsageError, match="takes a path"):
        registry.open_session(registry.parse("recorded"), weights)


def test_a_recording_that_does_not_say_its_checkpoint_tells_so(sound: Path, weights: Weights) -> None:
    changed(sound, fingerprint="", model={})
    with played(sound, weights) as session:
        assert isinstance(session, RecordedSession)
        assert "the recording does not say which checkpoint it was made of" in session.info.notes


# ---- what is said before it is opened ---------------------------------------------------------


def test_number_format_and_device_are_the_recordings(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"recording": 1, "info": {"device": "cuda:0", "dtype": "f16"}}')
    spec = registry.parse(f"recorded:{tmp_path}", "cpu", "bf16")
    assert (spec.device, spec.dtype, spec.id) == ("cuda:0", "f16", f"recorded:{tmp_path}@cuda:0,f16")
    assert registry.parse(spec.id) == spec
    with pytest.raises(UsageError, match="computes with dtype f16"):
        registry.parse(f"recorded:{tmp_path}@bf16")


def test_a_file_that_says_nothing_is_f32(tmp_path: Path) -> None:
    save_file({"logits": np.ones(3, dtype=np.float32)}, tmp_path / "a.safetensors", {"dtype": "BF16"})
    np.save(tmp_path / "b.npy", np.ones(3))
    (tmp_path / "c.json").write_text("[1]")
    (tmp_path / "d.json").write_text('{"dtype": "q4", "device": "tpu"}')
    (tmp_path / "e.json").write_text("{")
    found = {name: dict(says(str(tmp_path / name))) for name in ("b.npy", "c.json", "d.json", "e.json")}
    assert set(map(str, found.values())) == {"{'device': 'cpu', 'dtype': 'f32'}"}
    assert says(str(tmp_path / "a.safetensors"))["dtype"] == "bf16"
    assert says(str(tmp_path / "nothing")) == {}
