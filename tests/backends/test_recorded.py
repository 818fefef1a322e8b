"""Recordings: bit by bit what was answered, words for what was not asked, and damage told in one line."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from backends import registry, tape
from backends.base import Array, Ids, Info, Output, Session, State, Want
from backends.dumped import DumpSession
from backends.errors import BackendError, InputError, Unsupported, UsageError
from backends.fingerprint import fingerprint
from backends.recorded import RecordedSession, says
from backends.recorder import Recorder
from backends.tape import Needle, Tape
from backends.weights import Weights
from tests.backends.random_model import as_weights, random_rwkv7

V = 61


@pytest.fixture(scope="module")
def weights() -> Weights:
    return as_weights(random_rwkv7(C=32, N=16, L=2, V=V))


@pytest.fixture
def live(weights: Weights) -> Iterator[Session]:
    with registry.open_session(registry.parse("torch-cpu-f32"), weights, 1) as session:
        yield session


def facts(weights: Weights, **more: Any) -> dict[str, Any]:
    info = {"dtype": "f32", "abilities": ["logits-all", "state", "trace", "batch", "replay"], "notes": ["as it was"]}
    known = {"subject": "torch-cpu-f32", "suites": ["logits"], "fingerprint": fingerprint(weights), "info": info}
    return {**known, "created": "2026-01-01", "model": {"name": "M", "vocab_size": V}, **more}


def recorded(folder: Path, weights: Weights, session: Session, asked: Callable[[Session], Any], **more: Any) -> Any:
    """What `asked` returns while it is recorded into a folder."""
    on = Tape(folder)
    found = asked(Recorder(session, on))
    on.finish(facts(weights, **more))
    return found


def played(folder: Path, weights: Weights) -> Session:
    return registry.open_session(registry.parse(f"recorded:{folder}"), weights)


def logits(out: Output) -> Array:
    assert out.logits is not None
    return out.logits


def everything(session: Session) -> list[Array]:
    """One call of every kind."""
    out = session.forward([1, 2, 3], want=Want("all", state=True, trace=("blocks.1.att.w", "head")))
    saved = session.export_state(out.state)
    on = session.forward([4], session.import_state(saved))
    rows = session.forward([[1, 2], [3, 4]], want=Want("last", state=True))
    free = list(session.generate([5, 6], max_new_tokens=3, stop=[60]))
    drawn = list(session.generate([5, 6], lambda z: z.argmin(axis=-1).astype(np.int64), 2))
    silent = session.forward([1, 2, 3], want=Want("all", fetch=False))
    assert silent.logits is None
    both = session.forward_together([([7], None, None), ([8, 9], out.state, Want("none", state=True))])
    after = session.export_state(both[1].state).parts().values()
    session.sync()
    parts = [logits(out), *out.trace.values(), *saved.parts().values(), logits(on), logits(rows)]
    return [*parts, *free, *drawn, logits(both[0]), *after]


# ---- the same answers ---------------------------------------------------------------------------


def test_every_call_comes_back_bit_by_bit(tmp_path: Path, weights: Weights, live: Session) -> None:
    expected = everything(live)
    assert _same(recorded(tmp_path, weights, live, everything), expected)
    with played(tmp_path, weights) as session:
        assert _same(everything(session), expected)
        assert _same(everything(session), expected), "and again"
        assert session.info.abilities == {"logits-all", "state", "trace", "batch"}, "nobody replays a recording"
        assert session.info.notes[0].startswith("a recording of torch-cpu-f32, made 2026-01-01")
        assert session.info.notes[-1] == "as it was"
        assert session.info.model == weights.facts
        assert not session.timed


def _same(a: Sequence[Array], b: Sequence[Array]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
    )


def test_calls_and_arrays_are_kept_once(tmp_path: Path, weights: Weights, live: Session) -> None:
    def twice(session: Session) -> None:
        for _ in range(2):
            state = session.forward([1, 2], want=Want(state=True)).state
            session.forward([3], state)
        session.forward([1, 2])  # another call, the same array

    recorded(tmp_path, weights, live, twice)
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert [(call["tokens"], call["state"]) for call in told["calls"]] == [
        ([[1, 2]], None),
        ([[3]], 1),
        ([[1, 2]], None),
    ]
    assert all(len(call["answers"]) == 1 for call in told["calls"])
    assert "takes" not in told, "where equal calls have equal answers, their order says nothing"
    assert len(tape.load(tmp_path)._found) == 2


def test_calls_that_differ_in_one_thing_are_told_apart(tmp_path: Path, weights: Weights, live: Session) -> None:
    def lowest(shown: Array) -> Ids:
        return np.asarray(shown.argmin(axis=-1), dtype=np.int64)

    asking: list[Callable[[Session], Any]] = [
        lambda session: session.forward([1]).logits,
        lambda session: session.forward([1], want=Want(fetch=False)).logits,
        lambda session: list(session.generate([1], max_new_tokens=2)),
        lambda session: list(session.generate([1], max_new_tokens=2, stop=range(V))),
        lambda session: list(session.generate([1], lowest, 2)),
        lambda session: list(session.generate([1], lowest, 1)),
    ]
    then = recorded(tmp_path, weights, live, lambda session: [ask(session) for ask in asking])
    assert then[0].shape == (1, 1, V)
    assert then[1] is None
    with played(tmp_path, weights) as session:
        now = [ask(session) for ask in reversed(asking)][::-1]
    assert repr(now) == repr(then)


def test_arrays_are_written_in_portions(
    tmp_path: Path, weights: Weights, live: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "PORTION", 500)
    expected = recorded(tmp_path, weights, live, everything)
    assert len(list(tmp_path.glob("arrays-*.safetensors"))) > 3
    with played(tmp_path, weights) as session:
        assert _same(everything(session), expected)


def test_an_array_is_what_it_was_when_it_was_answered(tmp_path: Path, weights: Weights, live: Session) -> None:
    def spoiled(session: Session) -> Array:
        out = logits(session.forward([1]))
        before = out.copy()
        out[:] = np.nan
        return before

    before = recorded(tmp_path, weights, live, spoiled)
    with played(tmp_path, weights) as session:
        logits(session.forward([1]))[:] = 0
        np.testing.assert_array_equal(logits(session.forward([1])), before)


class Chance(Session):
    """Answers every call otherwise, as one that rounds at random does."""

    def __init__(self, weights: Weights) -> None:
        self.info = Info("chance", weights.facts, abilities=frozenset({"state", "logits-all"}))
        self.count = 0

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        self.count += 1
        drawn = np.full((len(tokens), 1, V), self.count, dtype=np.float32)
        return Output(drawn if want.logits != "none" else None, state=self.count)

    def export_state(self, state: Any) -> State:
        part = np.full((1, 1, 1), state, dtype=np.float64)
        return State(part, np.zeros((1, 1, 0, 0, 0)), part, {"memory": part})

    def import_state(self, state: State) -> Any:
        return 0


def first(session: Session) -> list[float]:
    """A chain of calls, the same one twice, and a state that nothing shows."""
    silent = session.forward([1], want=Want("none", state=True)).state
    held = [float(session.export_state(silent).extra["memory"].item())]
    state = session.forward([1], want=Want(state=True)).state
    return held + [float(logits(session.forward([2], state, Want(state=True)))[0, 0, 0]) for _ in range(2)]


def second(session: Session) -> list[float]:
    state = session.forward([1], want=Want(state=True)).state
    return [float(logits(session.forward([token], state))[0, 0, 0]) for token in (2, 3)]


def test_chance_is_repeated_in_the_order_of_the_recording(tmp_path: Path, weights: Weights) -> None:
    on = Tape(tmp_path)
    one, other = Recorder(Chance(weights), on), Recorder(Chance(weights), on)
    expected = first(one), first(one), second(other)
    assert repr(expected) == "([1.0, 3.0, 4.0], [5.0, 7.0, 8.0], [2.0, 3.0])"
    on.finish(facts(weights))
    with played(tmp_path, weights) as session:
        assert first(session) == expected[0]
        assert first(session) == expected[1]
    with played(tmp_path, weights) as session:
        assert second(session) == expected[2], "a session that begins as the second one did is the second one"
        assert first(session) == expected[0], "and what began elsewhere is heard from there"


def test_the_needle_goes_on_then_later_then_back() -> None:
    needle = Needle([[(0, 0), (1, 0), (0, 1)], [(1, 1), (0, 2), (2, 0)]])
    assert [needle.answer(call) for call in (1, 0, 2, 0, 1, 0, 0)] == [1, 2, 0, 0, 0, 1, 0]
    assert Needle([]).answer(5) == 0


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


# ---- what was not recorded ----------------------------------------------------------------------


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


def test_the_recording_on_the_page_is_one_that_any_program_could_write(tmp_path: Path, weights: Weights) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recorded.md").read_text(encoding="utf-8")
    (tmp_path / "manifest.json").write_text(page.split("```json\n")[1].split("```")[0])
    numbers = np.arange(10, dtype="<f4").reshape(1, 2, 5)
    name = hashlib.blake2b(b"<f4 (1, 2, 5)\n" + numbers.tobytes(), digest_size=16).hexdigest()
    save_file({name: numbers}, tmp_path / "a.safetensors")
    session = RecordedSession(tape.load(tmp_path), replace(weights.facts, vocab_size=5))
    np.testing.assert_array_equal(logits(session.forward([3, 1], want=Want("all"))), numbers)
    assert (session.info.dtype, session.info.device, session.tokenizer) == ("f32", "cpu", None)


# ---- damage -------------------------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path: Path, weights: Weights, live: Session) -> Path:
    recorded(tmp_path, weights, live, lambda session: session.forward([1, 2]))
    return tmp_path


def refused(folder: Path, weights: Weights, words: str) -> None:
    with pytest.raises(InputError, match=words) as seen:
        played(folder, weights)
    assert "\n" not in str(seen.value)
    assert seen.value.exit_code == 3


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


# ---- a dump -------------------------------------------------------------------------------------

PROMPT = [3, 1, 4, 1, 5]


def dump(folder: Path, **arrays: Any) -> Path:
    told: dict[str, Any] = {key: arrays.pop(key) for key in ("dtype", "tokens", "fingerprint") if key in arrays}
    rows = []
    for name, value in arrays.items():
        value.astype("<f4").tofile(folder / f"{name}.bin")
        rows.append({"name": name, "dtype": "f32", "shape": list(value.shape), "file": f"{name}.bin"})
    told = {"dump": 1, "program": "a port", "tokens": PROMPT, **told, "tensors": rows}
    (folder / "manifest.json").write_text(json.dumps(told))
    return folder


def test_a_dump_answers_its_prompt_and_its_beginnings(tmp_path: Path, weights: Weights, live: Session) -> None:
    out = live.forward(PROMPT, want=Want("all", trace=("blocks.0.att.kk", "blocks.0.att.state")))
    kk, state = out.trace["blocks.0.att.kk"], out.trace["blocks.0.att.state"]
    heads = kk.reshape(1, 5, 2, 16)
    dump(tmp_path, dtype="bf16", logits=logits(out)[0], **{"blocks.0.att.kk": heads, "blocks.0.att.state": state[0]})
    with played(tmp_path, weights) as session:
        assert isinstance(session, DumpSession)
        assert session.info.dtype == "bf16"
        assert session.info.abilities == {"trace", "logits-all"}
        for T in (1, 3, 5):
            got = session.forward(PROMPT[:T], want=Want("all", trace=("blocks.0.*",)))
            np.testing.assert_array_equal(logits(got), logits(out)[:, :T])
            np.testing.assert_array_equal(got.trace["blocks.0.att.kk"], kk[:, :T])
            np.testing.assert_array_equal(got.trace["blocks.0.att.state"], state[:, :T])
            np.testing.assert_array_equal(logits(session.forward(PROMPT[:T])), logits(out)[:, T - 1 : T])
        assert session.forward(PROMPT, want=Want("none")).logits is None
        for wrong in ([3, 1, 5], [*PROMPT, 9], [[3, 1], [3, 1]]):
            with pytest.raises(Unsupported, match="is a recording of"):
                session.forward(wrong) if np.ndim(wrong) == 1 else session._forward(np.array(wrong), None, Want())
        with pytest.raises(Unsupported, match="no ability 'state'"):
            next(session.generate(PROMPT))


def test_the_last_position_alone_is_not_all_positions(tmp_path: Path, weights: Weights) -> None:
    dump(tmp_path, logits=np.arange(V))
    with played(tmp_path, weights) as session:
        assert session.info.abilities == frozenset()
        np.testing.assert_array_equal(logits(session.forward(PROMPT))[0, 0], np.arange(V))
        with pytest.raises(
            Unsupported, match=r"after the last token only: its one prompt has 5 tokens, \[3, 1, 4, 1, 5"
        ):
            session.forward(PROMPT[:2])
        with pytest.raises(Unsupported, match="no ability 'logits-all'"):
            session.forward(PROMPT, want=Want("all"))


def test_a_dump_without_logits(tmp_path: Path, weights: Weights) -> None:
    dump(tmp_path, **{"blocks.0.att.w": np.ones((5, 32))})
    with played(tmp_path, weights) as session:
        with pytest.raises(Unsupported, match="holds no logits"):
            session.forward(PROMPT)
        assert session.forward(PROMPT, want=Want("none", trace=("*",))).trace["blocks.0.att.w"].shape == (1, 5, 32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"tokens": [], "logits": np.ones((5, V))}, "does not say which tokens"),
        ({"state.wkv": np.ones((2, 2, 16, 16))}, "holds neither logits nor named tensors"),
        ({"logits": np.ones((4, V))}, r"logits of shape \(4, 61\), where \(5, 61\) or \(61,\) is due"),
        ({"tokens": [1, 99, 1, 1, 1], "logits": np.ones((5, V))}, "do not lie in the vocabulary of 61"),
        ({"blocks.0.att.w": np.ones((4, 32))}, r"shape \(4, 32\), which has to begin with 5 tokens"),
        ({"logits": np.ones((5, V)), "fingerprint": "ab"}, "was recorded of another checkpoint"),
    ],
)
def test_a_dump_that_cannot_answer_is_refused(
    tmp_path: Path, weights: Weights, arrays: dict[str, Any], words: str
) -> None:
    refused(dump(tmp_path, **arrays), weights, words)


def test_a_kit_is_no_answer(tmp_path: Path, weights: Weights) -> None:
    dump(tmp_path, logits=np.ones((5, V)))
    (tmp_path / "bands.safetensors").touch()
    refused(tmp_path, weights, "is a kit: what is expected")


# ---- what is said before it is opened -----------------------------------------------------------


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
