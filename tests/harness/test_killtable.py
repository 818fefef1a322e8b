"""Kill tables: rates, the way to JSON and back, the key of the cache, what the terminal shows."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness import killtable
from harness.killtable import EQUIVALENT, FAULT, HONEST, Row, Table, evidence, exit_code, keep, kept, key, lines


def row(name: str, role: str = FAULT, strict: Any = None, seed: Any = None, **more: Any) -> Row:
    return Row(name, role, "att.w" if role == FAULT else "", {"strict": strict or {}, "seed": seed or {}}, **more)


KILLED = {"layers.worst_ratio": math.inf, "logits.rms": 12.5, "layers.out_of_band": None}
ROWS = (
    row("w-v6", FAULT, KILLED, first="blocks.0.att.w", named=True),
    row("edge-state", FAULT, {"layers.worst_ratio": 4.0}, {"logits.top1_differs": None}, first="emb", named=False),
    row("sampler-stale", FAULT, {"generation.unexplained": None}),
    row("w-no-tanh", FAULT, effect=1e-3),
    row("kk-norm-over-c", FAULT, effect=0.0),
    row("w-softplus", EQUIVALENT),
    row("seed 1", HONEST, {}, {"logits.top5_differs": None}),
    row("seed 2", HONEST, broke="OSError: no such device"),
)
TABLE = Table("conformance", "bf16", ("logits", "layers"), ROWS, 12.25)


def test_rates() -> None:
    found = TABLE.summary("strict")
    assert (found["faults"], found["killed"], found["survivors"]) == (4, 3, ["w-no-tanh"])
    assert found["cannot_matter"] == ["kk-norm-over-c"]
    assert (found["equivalents"], found["honest_runs"], found["alarms"]) == (1, 2, ["seed 2"])
    assert (found["replayed"], found["localised"]) == (2, 1)
    assert TABLE.summary("seed")["alarms"] == ["seed 1", "seed 2"]


def test_who_breaks_is_accused_only_if_innocent() -> None:
    assert row("seed 1", HONEST, broke="it died").caught("strict")
    assert not row("w-v6", FAULT, broke="it died").caught("strict")


def test_json_and_back() -> None:
    text = json.dumps(TABLE.plain(), allow_nan=False)
    assert Table.from_plain(json.loads(text)) == TABLE


def test_totals_add_up_and_name_the_format() -> None:
    other = Table("conformance", "f32", TABLE.suites, ROWS[:1], 3.0)
    found = evidence([TABLE, other], ("strict", "seed"))
    json.dumps(found, allow_nan=False)
    assert (found["faults"], found["killed"], found["false_alarms"]) == (5, 4, 1)
    assert (found["survivors"], found["alarms"]) == (["w-no-tanh@bf16"], ["seed 2@bf16"])
    assert found["seconds"] == 15.2
    assert found["beside"]["seed"]["bf16"]["killed"] == 1
    assert set(found["summaries"]) == {r.name for r in ROWS if r.role == FAULT}


@pytest.mark.parametrize(
    ("rows", "code"),
    [(ROWS[:1], 0), (ROWS[:4], 1), ((ROWS[0], ROWS[7]), 1), (ROWS[4:6], 5), ((ROWS[0], ROWS[4], ROWS[5]), 0)],
)
def test_exit_codes(rows: tuple[Row, ...], code: int) -> None:
    assert exit_code(evidence([Table("m", "f32", (), rows, 1.0)], ("strict",))) == code


def test_the_terminal_shows_survivors_first() -> None:
    shown = list(lines(evidence([TABLE], ("strict", "seed"))))
    assert shown[0] == "conformance, bf16, profile strict"
    assert [line.split()[0] for line in shown[2:7]] == [
        "w-no-tanh", "kk-norm-over-c", "edge-state", "w-v6", "sampler-stale",
    ]  # fmt: skip
    told = "\n".join(shown)
    assert "w-no-tanh       att.w   SURVIVES" in told
    assert "cannot matter here" in told
    assert "layers.worst_ratio +2   inf x" in told
    assert "emb (another)" in told
    assert "survives w-no-tanh@bf16: no tanh" in told
    assert "false alarm seed 2@bf16: OSError: no such device" in told
    assert "strict bf16: killed 3 of 4, 1 false alarms of 3, first tensor out named 1 of 2" in told
    assert shown[-1] == "cannot matter on conformance, by float64: kk-norm-over-c"


def test_the_terminal_says_by_what_the_innocent_were_accused() -> None:
    accused = row("seed 3", HONEST, {"logits.rms": 1.25, "generation.unexplained": None})
    shown = list(lines(evidence([Table("m", "f32", (), (ROWS[2], accused), 1.0)], ("strict",))))
    assert shown[-1] == "false alarm seed 3@f32: logits.rms at 1.25 x, generation.unexplained"
    assert "named" not in shown[-2]


# ---- the cache -----------------------------------------------------------------------------------


def test_kept_and_found_again(tmp_path: Path) -> None:
    assert kept(tmp_path, "conformance", "bf16", "strict") is None
    path = keep(tmp_path, TABLE, "strict")
    assert path.parent == tmp_path / "cache"
    assert kept(tmp_path, "conformance", "bf16", "strict") == TABLE
    for other in (("conformance", "f32", "strict"), ("conformance", "bf16", "seed"), ("rwkv", "bf16", "strict")):
        assert kept(tmp_path, *other) is None
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    assert kept(tmp_path, "conformance", "bf16", "strict") is None
    path.write_text("[]", encoding="utf-8")
    assert kept(tmp_path, "conformance", "bf16", "strict") is None


def test_the_key_is_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one.pth", tmp_path / "two.pth"
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    assert key(str(one), "f32", "strict") == key(str(two), "f32", "strict")
    two.write_bytes(b"others")
    assert key(str(one), "f32", "strict") != key(str(two), "f32", "strict")
    folder = key(str(tmp_path), "f32", "strict")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").write_text("{}", encoding="utf-8")
    assert key(str(tmp_path), "f32", "strict") != folder
    before = key("conformance", "f32", "strict")
    monkeypatch.setattr(killtable, "code_hash", lambda: "another program")
    assert key("conformance", "f32", "strict") != before
