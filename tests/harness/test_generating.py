"""Command generate: prompts, outcomes, errors, conversion on first use, and which backend answers."""

import argparse
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import registry
from backends.checkpoint import open_checkpoint
from backends.convert import save
from backends.errors import UsageError
from backends.fingerprint import fingerprint
from backends.weights import Weights
from harness import cli, generating, prepared
from harness.answer import Feed
from harness.parameters import escapes
from harness.terminal import Interrupt
from tests.harness.test_chatting import Glass

OPTIONS = ("generate", "--model", "conformance", "--backend", "torch-cpu-f32", "--threads", "1")


def ran(capsys: pytest.CaptureFixture[str], *more: str, code: int = 0) -> tuple[str, str]:
    got = cli.run_command([*OPTIONS, *more])
    out, err = capsys.readouterr()
    assert got == code, err
    return out, err


def told(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran(capsys, *more, "--json")[0])
    return found


def test_json_tells_everything_and_a_seed_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    first = told(capsys, "--prompt", r"a\nb", "--n", "6", "--seed", "4")
    assert first["prompt"] == "a\nb"
    assert first["prompt_ids"] == [97, 10, 98]
    assert len(first["ids"]) == 6
    assert first["ended_by"] == "limit"
    assert first["tokens_per_second"] > 0
    assert first["settings"]["presence"] == 0.0
    assert told(capsys, "--prompt", r"a\nb", "--n", "6", "--seed", "4")["ids"] == first["ids"]
    assert told(capsys, "--prompt", r"a\nb", "--n", "6", "--seed", "5")["ids"] != first["ids"]
    assert told(capsys, "--prompt", r"a\nb", "--n", "6", "--no-escape")["prompt"] == r"a\nb"


def test_greedy_is_what_the_session_generates(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "--prompt", "def f(x):", "--n", "12", "--temperature", "0")
    with open_checkpoint("conformance") as weights:
        session = registry.open_session(registry.parse("torch-cpu-f32"), weights, 1)
        expected = [int(step[0]) for step in session.generate(list(b"def f(x):"), None, 12)]
    assert found["ids"] == expected


@pytest.mark.parametrize("backend", ["reference-f64", "torch-compile", "honest:3@bf16", "fault:w-v6"])
def test_every_backend_continues(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(told(capsys, "--backend", backend, "--prompt", "abc", "--n", "3")["ids"]) == 3


def test_templates_stops_and_parameters_reach_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(
        capsys, "--template", "fim", "--prompt", "A", "--suffix", r"B\n", "--n", "1", "--preset", "creative",
        "--top-p", "0.9", "--alpha-presence", "0.5", "--stop", r"\n", "--stop", "x", "--sampling", "candle",
    )  # fmt: skip
    assert found["prompt"] == "✿prefix✿✿suffix✿B\n✿middle✿A"
    settings = found["settings"]
    assert (settings["temperature"], settings["top_p"], settings["presence"]) == (0.6, 0.9, 0.5)
    assert (settings["stop"], settings["sampling"]) == (["\n", "x"], "candle")
    chat = told(capsys, "--template", "chat", "--system", "S", "--prompt", "Q", "--n", "1")
    assert chat["prompt"] == "System: S\n\nUser: Q\n\nAssistant:"


def test_a_prompt_from_a_file_or_stdin_is_taken_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(rb"a\nb" + b"\r\n")
    assert told(capsys, "--file", str(path), "--n", "1")["prompt"] == "a\\nb\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é".encode())))
    assert told(capsys, "-", "--n", "1")["prompt"] == "é"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ok\xff")))
    assert ran(capsys, "-", code=3)[1] == "error: stdin is no UTF-8 text (byte 2).\n"


def test_a_terminal_sees_prompt_answer_and_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    glass = Glass()
    monkeypatch.setattr(sys, "stdout", glass)
    assert cli.run_command([*OPTIONS, "--prompt", "abc", "--n", "2"]) == 0
    shown = glass.getvalue()
    assert shown.startswith("\x1b[2mabc\x1b[0m")
    assert "2 tokens, " in shown
    assert "prompt: 3 in " in shown
    assert "; ended by --n]" in shown


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ([], 2, "generate takes one prompt: --prompt TEXT, --file FILE, or - for stdin."),
        (["--prompt", "a", "--file", "b"], 2, "generate takes one prompt"),
        (["hello"], 2, "unexpected 'hello'; a prompt is given by --prompt, or - for stdin."),
        (["--file", "nothing-here"], 3, "nothing-here cannot be read: No such file or directory."),
        (["--prompt", ""], 2, "the prompt is empty, and this vocabulary has no token that begins a document."),
        (["--prompt", "a", "--template", "chit"], 2, "unknown template 'chit'. Did you mean chat?"),
        (["--prompt", "a", "--sampling", "oficial"], 2, "unknown sampling 'oficial'. Did you mean official?"),
        (["--prompt", "a", "--preset", "cold"], 2, "unknown preset 'cold'."),
        (["--prompt", "a", "--temperature", "-1"], 2, "temperature must be at least 0, got -1.0."),
        (["--prompt", "a", "--stop", ""], 2, "a stop text must not be empty."),
        (["--prompt", "a", "--suffix", "b"], 2, "template raw has no place for a suffix; fim has."),
        (["--prompt", "a", "--n", "0"], 2, "an answer has at least 1 token, got 0."),
        (["--prompt", "a", "--backend", "torch"], 2, "unknown backend 'torch'."),
        (["--prompt", "a", "--model", "conformanse"], 3, "unknown model 'conformanse'."),
    ],
)
def test_bad_input_is_one_line(more: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = ran(capsys, *more, code=code)
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_an_empty_prompt_begins_a_document_where_the_vocabulary_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint("conformance") as weights:
        session = registry.open_session(registry.parse("torch-cpu-f32"), weights, 1)
    monkeypatch.setattr(generating, "ends_of", lambda facts: (0,))
    assert generating._beginning(session) == [0]


def test_ctrl_c_ends_the_answer_with_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = Feed.__call__

    def pressing(feed: Any, place: Any, ids: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return inner(feed, place, ids)

    monkeypatch.setattr(Feed, "__call__", pressing)
    found = json.loads(ran(capsys, "--prompt", "abc", "--json", code=130)[0])
    assert (found["ended_by"], found["ids"]) == ("interrupted", [])


def test_a_second_ctrl_c_breaks() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("typed", "text"),
    [(r"a\nb", "a\nb"), (r"a\\nb", r"a\nb"), (r"\t\r", "\t\r"), (r"\d\x", r"\d\x"), ("\\", "\\"), (r"\\\n", "\\\n")],
)
def test_escapes(typed: str, text: str) -> None:
    assert escapes(typed) == text


# ---- which backend --------------------------------------------------------------------------------


def chosen(version: str = "7", device: str = "", dtype: str = "", backend: str = "") -> str:
    return generating._spec(argparse.Namespace(backend=backend, device=device, dtype=dtype), version).id


def test_the_first_backend_that_serves_the_model_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        registry.Backend("torch-cuda-bf16", "", "", devices=("cuda",), dtypes=("bf16",), versions=("7",)),
        registry.Backend("torch-cpu-f32", "", ""),
    ]
    monkeypatch.setattr(registry, "table", lambda: {row.name: row for row in rows})
    assert chosen() == "torch-cuda-bf16"
    assert chosen("6") == chosen(device="cpu") == chosen(dtype="f32") == "torch-cpu-f32"
    assert chosen(backend="torch-cpu-f32") == "torch-cpu-f32"
    with pytest.raises(UsageError, match="serves RWKV-7 mps here; name a --backend"):
        chosen(device="mps")


# ---- conversion on first use ----------------------------------------------------------------------


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    with open_checkpoint("conformance") as weights:
        return save(weights, tmp_path / "small.pth", "pth")


def row(*reads: str) -> registry.Backend:
    return registry.Backend("picky", "", "", reads=reads)


def opened(weights: Weights, picky: registry.Backend) -> tuple[Weights, list[str]]:
    lines: list[str] = []
    return prepared.prepared(weights, picky, lines.append), lines


def test_what_a_backend_reads_is_not_converted(pth: Path) -> None:
    for picky in (row(), row("safetensors", "pth")):
        with open_checkpoint(str(pth)) as weights:
            assert opened(weights, picky) == (weights, [])


def test_a_pth_is_converted_on_first_use_only(pth: Path) -> None:
    dest = pth.parent / "prepared" / "small" / "model.safetensors"
    with open_checkpoint(str(pth)) as weights:
        mine = fingerprint(weights)
        got, lines = opened(weights, row("safetensors"))
        assert lines == [f"converting {pth} to safetensors for picky, once"]
    with got:
        assert got.path == dest
        assert fingerprint(got) == mine
    again, lines = opened(open_checkpoint(str(pth)), row("safetensors"))
    again.close()
    assert lines == []
    pth.touch()
    newer, lines = opened(open_checkpoint(str(pth)), row("safetensors"))
    newer.close()
    assert len(lines) == 1


def test_what_has_no_folder_goes_into_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    got, lines = opened(open_checkpoint("conformance?seed=2"), row("pth"))
    with got:
        assert got.path == tmp_path / "rwkv-harness" / "prepared" / "conformance_seed_2" / "model.pth"
    assert len(lines) == 1
    again, lines = opened(open_checkpoint("conformance?seed=2"), row("pth"))
    again.close()
    assert lines == []


def test_fingerprints_see_every_value_of_a_small_model_and_no_number_format(tmp_path: Path) -> None:
    with open_checkpoint("conformance") as weights:
        mine = fingerprint(weights)
        path = save(weights, tmp_path / "x.safetensors", "safetensors", "f64")
        tensors = dict(weights.tensors)
    with open_checkpoint(str(path)) as same:
        assert fingerprint(same) == mine
    name = "blocks.1.ffn.key.weight"
    changed = tensors[name].read("cpu").clone()
    changed[-1, -1] = torch.nextafter(changed[-1, -1], torch.tensor(9.0, dtype=changed.dtype))
    from dataclasses import replace

    other = Weights(same.facts, tensors | {name: replace(tensors[name], read=lambda device: changed)})
    assert fingerprint(other) != mine


def test_fingerprints_of_large_models_read_little(monkeypatch: pytest.MonkeyPatch) -> None:
    from backends import fingerprint as module

    with open_checkpoint("conformance") as weights:
        whole = list(module._chosen(weights))
        monkeypatch.setattr(module, "WHOLE", 1000)
        monkeypatch.setattr(module, "SMALL", 500)
        some = list(module._chosen(weights))
        assert set(some) < set(whole) == set(weights)
        assert "blocks.0.att.key.weight" in some
        assert "blocks.1.att.key.weight" not in some
        assert "blocks.1.att.k_k" in some
        assert len(fingerprint(weights)) == 16
