"""Prompt templates: exact texts and ids."""

import pytest

from backends.errors import UsageError
from backends.prompts import TEMPLATES, clean, render, turn
from backends.tokenizer import open_tokenizer

Q = "What is 2+2?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raw", Q),
        ("chat", f"User: {Q}\n\nAssistant:"),
        ("think", f"User: {Q}\n\nAssistant: <think"),
        ("think-a-bit", f"User: {Q} (think a bit)\n\nAssistant: <think"),
        ("think-a-lot", f"User: {Q} (think a lot)\n\nAssistant: <think"),
        ("fake-think", f"User: {Q}\n\nAssistant: <think>\n</think"),
        ("fim", f"✿prefix✿✿suffix✿✿middle✿{Q}"),
    ],
)
def test_official_texts(name: str, text: str) -> None:
    assert render(name, Q) == text
    assert set(TEMPLATES) == {"raw", "chat", "think", "think-a-bit", "think-a-lot", "fake-think", "fim"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raw", Q),
        ("chat", f"User: {Q}\n\nA:"),
        ("think", f"User: {Q}\n\nA: <think>"),
        ("fake-think", f"User: {Q}\n\nA: <think></think"),
        ("fim", f"✿prefix✿✿suffix✿✿middle✿{Q}"),
    ],
)
def test_candles_texts(name: str, text: str) -> None:
    assert render(name, Q, dialect="candle") == text


def test_system_and_suffix() -> None:
    assert render("chat", Q, system="Be brief.") == f"System: Be brief.\n\nUser: {Q}\n\nAssistant:"
    assert render("chat", Q, system="Be brief.", dialect="candle") == f"System: Be brief.\n\nUser: {Q}\n\nA:"
    assert render("fim", "A", suffix="B") == "✿prefix✿✿suffix✿B✿middle✿A"


def test_where_the_dialects_clean_differently() -> None:
    text = "one\r\n\r\n\n\ntwo \n\n"
    assert clean(text) == "one\ntwo"
    assert render("chat", text) == "User: one\ntwo\n\nAssistant:"
    assert render("chat", text, dialect="candle") == "User: one\r\n\r\n\ntwo \n\n\nA:".replace(
        "two \n\n\n", "two \n\n\n"
    )
    assert render("raw", text) == text
    assert render("raw", text, dialect="candle") == "one\r\n\r\n\n\ntwo"
    assert render("chat", Q, system="a\n\nb", dialect="candle").startswith("System: a\n\nb\n\n")
    assert render("chat", Q, system="a\n\nb").startswith("System: a\nb\n\n")


def test_ids_of_the_world_vocabulary() -> None:
    world = open_tokenizer("world")
    assert world.encode(render("chat", "hi")) == [24281, 59, 4571, 261, 5585, 41693, 59]
    assert world.encode(render("fim", "A", suffix="B")) == [
        10060, 42093, 10060, 10060, 42337, 10060, 67, 10060, 41851, 10060, 66,
    ]  # fmt: skip
    assert world.encode(render("fake-think", "hi"))[-6:] == [295, 35762, 63, 11, 754, 35762]
    assert world.encode(render("fake-think", "hi", dialect="candle"))[-4:] == [295, 35762, 5439, 35762]


def test_rounds() -> None:
    assert turn("chat", " hi\n\n\nthere ", "S") == "System: S\n\nUser: hi\nthere\n\nAssistant:"
    for name in ("raw", "fim"):
        with pytest.raises(UsageError, match="holds no conversation; these do: chat, think"):
            turn(name, "hi")


def test_errors_say_what_there_is() -> None:
    with pytest.raises(UsageError, match="Did you mean think"):
        render("thnk", Q)
    with pytest.raises(UsageError, match="raw has no place for a system"):
        render("raw", Q, system="S")
    with pytest.raises(UsageError, match="chat has no place for a suffix; fim has"):
        render("chat", Q, suffix="S")
    with pytest.raises(UsageError, match="candle's example has no template think-a-lot"):
        render("think-a-lot", Q, dialect="candle")
