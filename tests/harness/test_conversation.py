"""Conversations: the history is a state, answers end where the user saw them end, a saved one goes on bit by bit."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backends.base import Session
from backends.checkpoint import open_checkpoint
from backends.errors import InputError, Unsupported, UsageError
from backends.registry import open_session, parse
from backends.sampling import Params
from backends.weights import Weights
from harness import saved
from harness.answer import Answer, Feed, InterruptedPromptError, Limits
from harness.conversation import Conversation, Settings, defaults, ends_of, make_sampler, tokenizer_of
from tests.harness.scripted import FACTS, Pieces, Scripted

GREEDY = Settings(Params(temperature=0.0, top_p=1.0, presence=0.0, frequency=0.0), tokens=40)


def said(conversation: Conversation, text: str) -> str:
    return "".join(conversation.say(text))


def fed(conversation: Conversation) -> str:
    session: Any = conversation.session
    point = conversation.point
    return str(session.text(point.place)) + point.rest


# ---- what is fed ----------------------------------------------------------------------------------


def test_history_is_the_state() -> None:
    session = Scripted({"one\n\nAssistant:": b" A1\n\n", "two\n\nAssistant:": b" A2.\n\n"})
    conversation = Conversation(session, replace(GREEDY, system="Be brief."))
    assert said(conversation, "one") == " A1"
    assert fed(conversation) == "System: Be brief.\n\nUser: one\n\nAssistant: A1"
    session.fed.clear()
    assert said(conversation, "two") == " A2."
    assert bytes(session.fed[0]).decode() == "\n\nUser: two\n\nAssistant:"  # nothing of the first round again
    assert fed(conversation) == "System: Be brief.\n\nUser: one\n\nAssistant: A1\n\nUser: two\n\nAssistant: A2."
    assert conversation.point.rounds == (("one", " A1"), ("two", " A2."))


@pytest.mark.parametrize(
    ("tokens", "answer", "rest"),
    [
        ([256, 257], " Paris", " Paris."[6:6]),  # "\n\nUser" in one token
        ([256, 258, 10], " Paris.", "."),  # ".\n" then "\n": the full stop is fed again as text
        ([256, 10, 10], " Paris", ""),
        ([256, 259], " Paris!", "!"),  # "!\n\nUs" in one token
    ],
)
def test_a_stop_text_inside_and_across_tokens(tokens: list[int], answer: str, rest: str) -> None:
    pieces = Pieces(b" Paris", b"\n\nUser", b".\n", b"!\n\nUs")
    session = Scripted({"q\n\nAssistant:": tokens, "again\n\nAssistant:": b" yes\n\n"}, pieces)
    conversation = Conversation(session, GREEDY)
    assert said(conversation, "q") == answer
    assert conversation.point.rest == rest
    assert fed(conversation) == f"User: q\n\nAssistant:{answer}"
    assert said(conversation, "again") == " yes"
    assert fed(conversation) == f"User: q\n\nAssistant:{answer}\n\nUser: again\n\nAssistant: yes"
    assert conversation.last is not None
    assert conversation.last.reason == "stop"


def test_an_emoji_over_four_tokens_comes_whole() -> None:
    session = Scripted({"q\n\nAssistant:": "👍 ok\n\n".encode()})
    conversation = Conversation(session, GREEDY)
    assert list(conversation.say("q")) == ["👍", " ", "o", "k"]


def test_an_answer_cut_inside_a_character_goes_back_before_it() -> None:
    session = Scripted({"q\n\nAssistant:": "a👍".encode(), "r\n\nAssistant:": b"b\n\n"})
    conversation = Conversation(session, replace(GREEDY, tokens=3))
    assert said(conversation, "q") == "a"
    assert fed(conversation) == "User: q\n\nAssistant:a"
    assert said(conversation, "r") == "b"
    assert fed(conversation) == "User: q\n\nAssistant:a\n\nUser: r\n\nAssistant:b"


def test_bytes_that_are_no_text_stay_in_the_state() -> None:
    pieces = Pieces(b"\xff\n\nx")
    conversation = Conversation(Scripted({"q\n\nAssistant:": [0xFE, 0xFF, 10, 10]}, pieces), GREEDY)
    assert said(conversation, "q") == "��"
    assert conversation.point.rest == ""
    assert conversation.point.place[-2:] == (0xFE, 0xFF)
    half = Conversation(Scripted({"q\n\nAssistant:": [ord("a"), 256]}, pieces), GREEDY)
    assert said(half, "q") == "a�"
    assert (half.point.rest, half.point.place[-1]) == ("", ord("a"))  # what no text can say again is left out


def test_the_limit_ends_an_answer() -> None:
    conversation = Conversation(Scripted({"q\n\nAssistant:": b"abcdefgh"}), replace(GREEDY, tokens=3))
    assert said(conversation, "q") == "abc"
    assert conversation.last is not None
    assert (conversation.last.reason, conversation.last.ids) == ("limit", [97, 98, 99])
    assert fed(conversation) == "User: q\n\nAssistant:abc"


def test_end_tokens_are_not_shown() -> None:
    session = Scripted({"q": b"ab\0"})
    sampler = make_sampler(session, GREEDY)
    answer = Answer(Feed(session), Pieces(), sampler, Limits(9, (), (0,)), list(b"q"))
    assert "".join(answer) == "ab"
    assert (answer.reason, answer.ids) == ("end", [97, 98])
    assert ends_of(FACTS) == ()
    assert ends_of(replace(FACTS, tokenizer="world")) == (0,)


def test_without_states_everything_is_fed_again() -> None:
    session = Scripted({"one\n\nAssistant:": b" A\n\n", "two\n\nAssistant:": b" B\n\n"}, abilities=frozenset())
    conversation = Conversation(session, GREEDY)
    assert [said(conversation, text) for text in ("one", "two")] == [" A", " B"]
    assert bytes(conversation.point.place).decode() == "User: one\n\nAssistant: A\n\nUser: two\n\nAssistant: B"
    with pytest.raises(Unsupported, match="no ability 'state', so there is no state to save"):
        saved.save(conversation, saved.Identity("m", {}, ""), Path("x"))
    with pytest.raises(Unsupported, match="cannot go on from one"):
        saved.load(conversation, saved.Identity("m", {}, ""), Path("x"))


# ---- interrupts, again, reset, other settings -----------------------------------------------------


def test_an_interrupt_ends_the_answer_and_keeps_what_was_shown() -> None:
    shown: list[str] = []
    session = Scripted({"q\n\nAssistant:": b"abcdefgh", "r\n\nAssistant:": b"R\n\n"})
    conversation = Conversation(session, GREEDY, lambda: len(shown) >= 2)
    shown.extend(conversation.say("q"))
    assert "".join(shown) == "ab"
    assert conversation.last is not None
    assert conversation.last.reason == "interrupted"
    shown.clear()
    assert said(conversation, "r") == "R"
    assert fed(conversation) == "User: q\n\nAssistant:ab\n\nUser: r\n\nAssistant:R"


def test_an_interrupt_inside_the_question_says_nothing() -> None:
    session = Scripted({"\n\nAssistant:": b"A\n\n"})
    stopped = False
    conversation = Conversation(session, GREEDY, lambda: stopped)
    assert said(conversation, "q") == "A"
    before = conversation.point
    stopped = True
    with pytest.raises(InterruptedPromptError):
        said(conversation, "x" * 600)
    assert conversation.point.place == before.place
    assert conversation.point.rounds == before.rounds
    stopped = False
    assert said(conversation, "r") == "A"


def test_long_questions_are_fed_in_portions() -> None:
    session = Scripted({"\n\nAssistant:": b"A\n\n"})
    conversation = Conversation(session, GREEDY)
    assert said(conversation, "x" * 600) == "A"
    assert [len(ids) for ids in session.fed] == [256, 256, 600 + 18 - 512, 1, 1]


@pytest.fixture(scope="module")
def session(weights: Weights) -> Iterator[Session]:
    with open_session(parse("torch-cpu-f32"), weights, 1) as opened:
        yield opened


WARM = Settings(Params(temperature=1.0, top_p=0.9, presence=0.4, frequency=0.2, decay=0.9), tokens=12, stops=())


def test_another_answer_to_the_same_question(session: Session) -> None:
    conversation = Conversation(session, WARM)
    said(conversation, "one")
    before = conversation.point.rounds
    first = said(conversation, "two")
    second = "".join(conversation.again())
    assert first != second
    assert conversation.point.rounds == (*before, ("two", second))
    assert "".join(conversation.again()) not in (first, second)
    greedy = Conversation(session, replace(WARM, params=GREEDY.params))
    assert said(greedy, "two") == "".join(greedy.again())
    with pytest.raises(UsageError, match="no answer to draw again"):
        Conversation(session, WARM).again()


def test_reset_begins_anew(session: Session) -> None:
    conversation = Conversation(session, replace(WARM, params=GREEDY.params))
    first = said(conversation, "one")
    said(conversation, "two")
    conversation.reset()
    assert conversation.point.rounds == ()
    assert said(conversation, "one") == first


def test_other_settings_keep_the_history_and_the_luck(session: Session) -> None:
    plain, changed = (Conversation(session, WARM) for _ in range(2))
    for conversation in (plain, changed):
        said(conversation, "one")
    changed.change(replace(WARM, tokens=4))
    assert said(plain, "two").startswith(said(changed, "two"))
    with pytest.raises(UsageError, match="holds no conversation"):
        changed.change(replace(WARM, template="fim"))


def test_seeds_repeat_a_conversation(session: Session) -> None:
    def run(seed: int) -> list[str]:
        conversation = Conversation(session, replace(WARM, seed=seed))
        return [said(conversation, text) for text in ("one", "two")]

    assert run(1) == run(1) != run(2)


# ---- save and load --------------------------------------------------------------------------------


def heard(conversation: Conversation, text: str) -> list[np.ndarray[Any, Any]]:
    """Logits from which each token of an answer was drawn."""
    logits = []
    inner = conversation.sampler.probabilities

    def listening(values: np.ndarray[Any, Any], row: int = 0) -> np.ndarray[Any, Any]:
        logits.append(values.copy())
        return inner(values, row)

    conversation.sampler.probabilities = listening  # type: ignore[assignment, method-assign]
    said(conversation, text)
    return logits


@pytest.mark.parametrize("sampling", ["official", "candle"])
@pytest.mark.parametrize("backend", ["torch-cpu-f32", "reference-f64", "torch-compile"])
def test_a_saved_conversation_goes_on_bit_by_bit(weights: Weights, backend: str, sampling: str, tmp_path: Path) -> None:
    identity = saved.identity(weights)
    settings = replace(WARM, sampling=sampling, system="Be brief.", seed=9)
    with open_session(parse(backend), weights, 1) as session:
        conversation = Conversation(session, settings)
        for text in ("one", "two"):
            said(conversation, text)
        saved.save(conversation, identity, tmp_path / "talk")
        expected = heard(conversation, "three")
    with open_session(parse(backend), weights, 1) as session:
        resumed = Conversation(session, GREEDY)
        saved.load(resumed, identity, tmp_path / "talk")
        assert resumed.settings == settings
        got = heard(resumed, "three")
    assert len(got) == len(expected) > 5
    assert all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in zip(got, expected, strict=True))
    assert resumed.point.rounds == conversation.point.rounds
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk"]


def test_a_conversation_that_has_not_begun_can_be_saved(session: Session, weights: Weights, tmp_path: Path) -> None:
    identity = saved.identity(weights)
    saved.save(Conversation(session, WARM), identity, tmp_path / "empty")
    resumed = Conversation(session, GREEDY)
    saved.load(resumed, identity, tmp_path / "empty")
    assert resumed.settings == WARM
    assert said(resumed, "one") == said(Conversation(session, WARM), "one")


def test_states_with_more_parts_survive(tmp_path: Path) -> None:
    identity = saved.Identity("m", {"version": "7b", "n_layer": 1, "n_embd": 4}, "f")
    script = {"one\n\nAssistant:": b" A1\n\n", "two\n\nAssistant:": b" A2\n\n"}
    conversation = Conversation(Scripted(script), GREEDY)
    said(conversation, "one")
    saved.save(conversation, identity, tmp_path / "x")
    resumed = Conversation(Scripted(script), GREEDY)
    saved.load(resumed, identity, tmp_path / "x")
    assert said(resumed, "two") == " A2"
    assert fed(resumed).endswith("A1\n\nUser: two\n\nAssistant: A2")


def test_another_model_is_refused_in_words(session: Session, weights: Weights, tmp_path: Path) -> None:
    conversation = Conversation(session, WARM)
    said(conversation, "one")
    mine = saved.identity(weights)
    saved.save(conversation, mine, tmp_path / "talk")
    with open_checkpoint("conformance?seed=1") as other:
        theirs = saved.identity(other)
    assert theirs.fingerprint != mine.fingerprint
    with pytest.raises(
        InputError, match=rf"is a conversation with conformance \(RWKV-7, .* {mine.fingerprint}\); this is"
    ):
        saved.load(conversation, theirs, tmp_path / "talk")
    moved = replace(mine, name="elsewhere")
    saved.load(conversation, moved, tmp_path / "talk")


def test_files_that_are_no_conversation(session: Session, weights: Weights, tmp_path: Path) -> None:
    conversation, mine = Conversation(session, WARM), saved.identity(weights)
    cases: dict[str, tuple[Any, str]] = {
        "none": (None, "cannot be read: "),
        "junk": (b"nothing", "cannot be read: "),
        "plain": ({}, "is no saved conversation"),
        "future": ({saved.KEY: json.dumps({"format": 2})}, "has format 2 of conversations; this program reads 1"),
        "empty": ({saved.KEY: json.dumps({"format": 1})}, "whose description is damaged"),
    }
    for name, (content, message) in cases.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            save_file({"x": np.zeros(1)}, tmp_path / name, content)
        with pytest.raises(InputError, match=message):
            saved.load(conversation, mine, tmp_path / name)
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        saved.save(conversation, mine, tmp_path / "no" / "folder")


def test_a_state_that_lacks_a_part_is_refused(session: Session, weights: Weights, tmp_path: Path) -> None:
    conversation, mine = Conversation(session, WARM), saved.identity(weights)
    said(conversation, "one")
    path = tmp_path / "talk"
    saved.save(conversation, mine, path)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert set(tensors) == {"state.att_shift", "state.wkv", "state.ffn_shift", "logits"}
    del tensors["state.wkv"]
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match="the state lacks wkv"):
        saved.load(conversation, mine, path)


# ---- defaults -------------------------------------------------------------------------------------


def test_bytes_are_not_penalised_by_default() -> None:
    assert defaults(FACTS, "official") == Params(presence=0.0, frequency=0.0)
    assert defaults(replace(FACTS, tokenizer="world"), "official") == Params()
    assert defaults(replace(FACTS, tokenizer="world"), "candle").presence == 2.0


def test_padded_rows_of_a_head_are_never_drawn() -> None:
    session = Scripted({})
    session.info = replace(session.info, model=replace(FACTS, vocab_size=260))
    assert make_sampler(session, GREEDY).banned.tolist() == [256, 257, 258, 259]
    session.tokenizer = None
    with pytest.raises(InputError, match="no tokenizer for its vocabulary of 260"):
        tokenizer_of(session)
