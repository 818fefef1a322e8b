"""Command chat, on a pseudo-terminal and through a pipe."""

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from harness import cli
from harness.chatting import Talk
from harness.conversation import Conversation, Settings
from harness.saved import Identity
from harness.terminal import Interrupt, Screen
from tests.harness.scripted import Scripted
from tests.harness.terminal import Typist

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

PROMPT = "User: "
OPTIONS = ("chat", "--model", "conformance", "--backend", "torch-cpu-f32", "--threads", "1", "--seed", "5")


def answered(typist: Typist) -> str:
    """The answer that stands between the prompt of the model and that of the user."""
    typist.wait("Assistant: ")
    return typist.wait(PROMPT)


def test_three_turns_an_interrupt_and_a_saved_conversation(tmp_path: Path) -> None:
    first, after = tmp_path / "first", tmp_path / "after"
    with Typist(*OPTIONS, "--n", "25") as typist:
        assert "conformance: RWKV-7, " in typist.wait(PROMPT)
        typist.type("One?")
        assert re.search(r"\[\d+ tokens, [\d.]+ tokens/s; prompt: 22 in [\d.]+ s", answered(typist))
        typist.type("/params n=100000")
        typist.wait(PROMPT)
        typist.type("Two?")
        typist.wait("Assistant: ")
        typist.wait("\n")  # some of the answer: the first line of it
        typist.interrupt()
        assert "; interrupted]" in typist.wait(PROMPT)
        assert typist.program.poll() is None
        typist.type("/params n=25")
        typist.wait(PROMPT)
        typist.type(f"/save {first}")
        assert "saved" in typist.wait(PROMPT)
        typist.type("Three?")
        third = answered(typist)
        typist.type(f"/save {after}")
        typist.wait(PROMPT)
        assert typist.leave() == 0
    again = tmp_path / "again"
    with Typist(*OPTIONS, "--load", str(first)) as typist:
        typist.wait("2 rounds, settings and luck as they were")
        typist.wait(PROMPT)
        typist.type("Three?")
        repeated = answered(typist)
        typist.type(f"/save {again}")
        typist.wait(PROMPT)
        typist.type("/quit")
        assert typist.program.wait(60) == 0
    assert _spoken(repeated) == _spoken(third)
    ours, theirs = load_file(after), load_file(again)
    assert set(ours) == set(theirs) == {"state.att_shift", "state.wkv", "state.ffn_shift", "logits"}
    for name, value in ours.items():
        assert np.array_equal(value.view(np.uint8), theirs[name].view(np.uint8)), name
    assert after.read_bytes() == again.read_bytes()


def _spoken(text: str) -> str:
    """An answer without the remark behind it, which holds seconds."""
    return text.rpartition("[")[0]


def test_a_second_interrupt_and_one_at_the_prompt_leave_the_program_alive() -> None:
    with Typist(*OPTIONS, "--n", "100000", "--stop", "no such text") as typist:
        typist.wait(PROMPT)
        typist.interrupt_until("(/quit or Ctrl-D leaves)")
        typist.wait(PROMPT)
        typist.type("Go on.")
        typist.wait("Assistant: ")
        typist.interrupt()
        typist.wait(PROMPT)
        typist.type("/params temprature=1")
        assert "Did you mean temperature" in typist.wait(PROMPT)
        assert typist.leave() == 0


# ---- through a pipe -------------------------------------------------------------------------------


def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str, *more: str) -> Any:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code = cli.run_command([*OPTIONS, *more])
    return code, *capsys.readouterr()


def test_ctrl_c_between_prompt_and_answer_ends_the_round_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heed, heard = Talk._heed, list[str]()

    def pressed(talk: Talk, line: str) -> None:
        heard.append(line)
        if len(heard) == 1:
            raise KeyboardInterrupt
        heed(talk, line)

    monkeypatch.setattr(Talk, "_heed", pressed)
    code, _, err = piped(monkeypatch, capsys, "One?\n/reset\n")
    assert (code, err, heard) == (0, "", ["One?", "/reset"])


def test_a_pipe_gets_answers_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    lines = f"One?\n\n/regen\n/reset\nOne?\n/save {kept}\n/load {kept}\n"
    code, out, err = piped(monkeypatch, capsys, lines, "--temperature", "0", "--n", "4", "--stop", "zz")
    assert (code, err) == (0, "")
    first, again, anew = out.split("\n")[:3] if out.count("\n") == 3 else _thirds(out)
    assert first == again == anew
    assert "\x1b[" not in out
    assert "User:" not in out
    with safe_open(kept, framework="numpy") as file:
        assert '"One?"' in file.metadata()["rwkv_harness_conversation"]


def _thirds(out: str) -> list[str]:
    """Answers of equal length, which hold newlines themselves."""
    size = len(out) // 3
    return [out[:size], out[size : 2 * size], out[2 * size :]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/svae x", "unknown command '/svae'. Did you mean /save?"),
        ("/save", "/save takes a file."),
        ("/load", "/load takes a file."),
        ("/load nothing-here", "nothing-here cannot be read"),
        ("/reset now", "/reset takes nothing, got 'now'."),
        ("/regen", "there is no answer to draw again."),
        ("/params temperature", "/params takes NAME=VALUE, got 'temperature'"),
        ("/params temperature=hot", "temperature takes a number, got 'hot'."),
        ("/params top-k=1.5", "top-k takes a whole number, got '1.5'."),
        ("/params top_p=2", "top-p must be at least 0, at most 1, got 2.0."),
        ("/params template=fim", "template fim holds no conversation"),
        ("/params template=chit", "unknown template 'chit'. Did you mean chat?"),
        ("/params sampling=mine", "unknown sampling 'mine'"),
        ("/params preset=cat", "unknown preset 'cat'. Did you mean chat"),
        ("/params n=0", "an answer has at least 1 token, got 0."),
        ("/params seed=-1", "the seed must be at least 0, got -1."),
        ('/params stop="', "/params: No closing quotation."),
    ],
)
def test_mistakes_are_one_line_and_the_talk_goes_on(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Talk(Conversation(Scripted({"\n\nAssistant:": b" A\n\n"}), Settings(_cold())), _identity, Interrupt())
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\nhello\n"))
    talk.run()
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert out == "A\n"


def _cold() -> Any:
    from backends.sampling import Params

    return Params(temperature=0.0, presence=0.0, frequency=0.0)


def _identity() -> Identity:
    return Identity("scripted", {}, "")


def talked(lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Talk, str]:
    talk = Talk(Conversation(Scripted({"\n\nAssistant:": b" A\n\n"}), Settings(_cold())), _identity, Interrupt())
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    talk.run()
    out, err = capsys.readouterr()
    assert err == ""
    return talk, out


def test_parameters_are_shown_and_changed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (
        '/params\n/params top-p=0.25 stop="END\\n" n=7\n/params preset=creative\n/params exempt=xy sampling=candle\n'
    )
    talk, out = talked(lines, monkeypatch, capsys)
    shown = out.splitlines()
    assert shown[0] == "temperature=0"
    assert shown[12:16] == ["stop=('\\n\\n',)", "top_p=0.25", "n=7", "stop=('END\\n',)"]
    assert "temperature=0.6" in shown[16:]
    settings = talk.conversation.settings
    assert settings.params.top_p == 0.7
    assert settings.params.presence == 0.0  # bytes
    assert (settings.params.exempt, settings.sampling, settings.tokens, settings.stops) == (
        "xy",
        "candle",
        7,
        ("END\n",),
    )


def test_lines_can_be_joined_and_help_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk, out = talked("/help\none\\\ntwo\n/quit\nnever\n", monkeypatch, capsys)
    assert talk.conversation.point.rounds == (("one\ntwo", " A"),)
    assert all(name in out for name in (*talk.commands, "/quit"))


def test_thinking_shows_its_opening(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    session = Scripted({"q\n\nAssistant: <think": b">hm\n\n</think>\n4\n\nUser"})
    talk = Talk(Conversation(session, Settings(_cold(), template="think")), _identity, Interrupt())
    monkeypatch.setattr(sys, "stdin", io.StringIO("q\n"))
    talk.run()
    assert capsys.readouterr().out == "<think>hm\n\n</think>\n4\n"


def test_input_that_is_no_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raw = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", raw)
    assert cli.run_command([*OPTIONS]) == 3
    assert capsys.readouterr().err == "error: the input is no UTF-8 text: invalid start byte.\n"


# ---- the screen -----------------------------------------------------------------------------------


class Glass(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_models_control_characters_do_nothing_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    glass = Glass()
    monkeypatch.setattr(sys, "stdout", glass)
    screen = Screen()
    screen.write("a\x1b]0;x\x07\x00\x7f\x9bb\n\t")
    assert glass.getvalue() == "a␛]0;x␇␀␡�b\n\t"
    screen.line("note", "dim")
    screen.aside("more")
    assert glass.getvalue().endswith("\x1b[2mnote\x1b[0m\n\x1b[2mmore\x1b[0m\n")


def test_a_terminal_that_lacks_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Screen().write("Zürich")
    assert raw.getvalue() == b"Z?rich"
