"""`python -m backends.demo` with a tiny plan and corpus: what it writes, says and returns."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from backends.checkpoint import open_checkpoint
from backends.demo import __main__ as program
from backends.demo import corpus, export, scan, training
from backends.demo.corpus import Corpus
from backends.demo.training import Plan, Trainer
from backends.errors import InputError
from tests.backends.demo import tiny
from tests.backends.demo.test_export import header

TEXT = Corpus(tiny.FILES[:5], tiny.FILES[5:])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    threads = torch.get_num_threads()
    shapes = {
        name: getattr(tiny.PLAN, name) for name in ("shape", "rows", "tokens", "carried", "finish_carried", "dtype")
    }
    monkeypatch.setattr(program, "Plan", partial(Plan, **shapes))
    monkeypatch.setattr(corpus, "read", lambda: TEXT)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def _main(*arguments: str, steps: int = 4, finish: int = 2) -> int:
    tail = ("--steps", str(steps), "--finish", str(finish), "--no-compile", "--scan", "chunks")
    return program.main([*tail, *arguments])


def test_it_trains_judges_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("--judge", "3") == 0
    said, file = capsys.readouterr().out, tmp_path / "demo-training" / "demo.safetensors"
    assert re.search(
        r"^Python 3\S+: 5 files, 1,\d\d\d bytes to train on; 1 files, \d+ bytes held out; \w{16}$", said, re.M
    )
    assert re.search(r"parameters; step 0 of 6$", said, re.M)
    assert re.search(r"^\d\d:\d\d:\d\d step 6 of 6, \d\.\d{3} bits per byte, \d\.\d\d s a step$", said, re.M)
    assert said.count("bytes of each held-out file take") == 2
    told = re.search(r"demo, bf16 weights +(\S+)\n +order-5 n-gram \(Kneser-Ney\) +(\S+)\n +gzip -9 +(\S+)\n", said)
    assert told
    facts = header(file)["__metadata__"]
    assert facts["bits_per_byte"] == told[1]
    assert (facts["steps"], facts["corpus"]) == ("6", TEXT.fingerprint())
    assert f"{file.stat().st_size:,} bytes, sha256 {export.sha256(file)}" in said
    with open_checkpoint(str(file)) as weights:
        found = {name: weights.get(name, "f32") for name in weights}
    reached = training.bits_per_byte(found, tiny.SHAPE, TEXT.held_out, "chunks")
    assert reached == pytest.approx(float(told[1]), abs=1e-4)


def test_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Trainer.advance

    def interrupted(self: Trainer) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        assert _main("--out", "cut") == 130
    said = capsys.readouterr()
    assert "interrupted; the same command goes on from the checkpoint" in said.err
    assert "wrote" not in said.out
    assert [file.name for file in (tmp_path / "cut").iterdir()] == ["training.pt"]
    assert _main("--out", "cut") == 0
    assert "step 3 of 6" in capsys.readouterr().out
    assert _main("--out", "whole") == 0
    assert (tmp_path / "cut" / "demo.safetensors").read_bytes() == (
        tmp_path / "whole" / "demo.safetensors"
    ).read_bytes()


def test_another_plan_in_the_same_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main() == 0
    assert _main(steps=5) == 3
    assert re.search(
        r"^error: .*training\.pt is of a run with another steps; use another --out", capsys.readouterr().err
    )


def test_no_corpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Corpus:
        raise InputError("nowhere holds too few Python sources.")

    monkeypatch.setattr(corpus, "read", nothing)
    assert _main() == 3
    assert capsys.readouterr().err == "error: nowhere holds too few Python sources.\n"


def test_what_it_sets_for_the_process_it_takes_back() -> None:
    assert _main("--threads", "1") == 0
    assert (torch.full((8,), 1e-39) * 0.5).min() > 0


def test_one_line_is_rewritten_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log = program.Log(TEXT, 0)
    trainer = Trainer(replace(tiny.PLAN, steps=2, finish=0), tiny.FILES)
    for seconds in (60.0, 120.0):
        trainer.advance()
        log.tell(trainer, seconds)
    said = capsys.readouterr()
    lines = said.err.split("\r\x1b[2K")
    assert re.fullmatch(r"step 1 of 2, \d\.\d{3} bits per byte, 60\.00 s a step, 1 min left", lines[1])
    assert re.fullmatch(r"step 2 of 2, \d\.\d{3} bits per byte, 61\.20 s a step, 0 min left\n", lines[2])
    assert said.out == ""


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for obstacle, way in (("", "native"), ("no C compiler", "chunks")):
        monkeypatch.setattr(scan, "obstacle", lambda obstacle=obstacle: obstacle)
        options = program._options([])
        assert (options.scan, options.out, options.threads, options.seed) == (way, "demo-training", 1, 0)
        assert (options.steps, options.finish, options.no_compile) == (Plan().steps, Plan().finish, False)


@pytest.mark.parametrize("arguments", [["--step", "3"], ["--steps", "many"], ["--scan", "fast"]])
def test_what_it_does_not_know(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(arguments)
    assert caught.value.code == 2
    assert "python -m backends.demo: error:" in capsys.readouterr().err
