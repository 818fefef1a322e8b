"""Two dumps against each other: what passes, what fails, what is untested."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.errors import InputError, UsageError
from harness.compare import compare, load_profile, profiles, table, verdict_line
from reports.record import Outcome, Record
from tests.harness.saved_things import Array, V, candle, candle_mi, logits, numbers, outcomes, softmax, tensors, write


def test_an_honest_port_passes(tmp_path: Path) -> None:
    x = logits()[0]
    y = x + np.random.default_rng(1).normal(size=V).astype(np.float32) * np.float32(3e-6)
    record = compare(candle(tmp_path, "py", x, softmax(x), [1, 2]), candle(tmp_path, "rust", y, softmax(y), [1, 2]))
    assert record.exit_code() == 0
    assert record.counts()["pass"] == len(record.verdicts) == 9
    n = numbers(record)
    assert n["deviation"] == pytest.approx(np.abs(y.astype(float) - x).max() / x.std(), rel=1e-6)
    assert n["correlation"] == pytest.approx(1)
    p, q = softmax(x), softmax(y)
    assert n["prob_l1"] == pytest.approx(np.abs(q - p).sum(), rel=1e-6)
    assert n["prob_l2"] == pytest.approx(math.sqrt(((q - p) ** 2).sum()), rel=1e-6)
    assert n["kl_reverse_max"] == pytest.approx((q * np.log(q / p)).sum(), abs=1e-15)
    assert [s.role for s in record.subjects] == ["reference", "candidate"]
    assert Record.from_json(record.to_json()).verdicts == record.verdicts
    assert verdict_line(record) == "PASS: 9 of 9 criteria met (profile strict)."


@pytest.mark.parametrize("profile", ["strict", "seed"])
def test_one_logit_off_by_one_percent_fails(tmp_path: Path, profile: str) -> None:
    x = logits()[0]
    a = candle(tmp_path, "py", x)
    for i in (int(x.argmax()), int(x.argmin()), 5):
        y = x.copy()
        y[i] *= 1.01
        record = compare(a, candle(tmp_path, "rust", y), profile=profile)
        assert record.exit_code() == 1
        assert outcomes(record)["deviation"] is Outcome.FAIL
        assert f"id {i}" in table(record)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("profile", ["strict", "seed"])
def test_not_finite_never_passes(tmp_path: Path, bad: float, profile: str) -> None:
    x = logits()[0]
    y = x.copy()
    y[5] = bad
    a, b = candle(tmp_path, "py", x), candle(tmp_path, "rust", y)
    assert compare(a, b, profile=profile).exit_code() == 1
    assert compare(b, a, profile=profile).exit_code() == 1
    assert compare(b, b, profile=profile).exit_code() == 1


@pytest.mark.parametrize(
    ("spoil", "criterion"),
    [
        (lambda p: p * 1.001, "prob_sum_off"),
        (lambda p: p - 2 * p.min(), "prob_min"),
        (lambda p: np.roll(p, 1), "prob_off_softmax"),
        (lambda p: p * np.nan, "prob_sum_off"),
        (lambda p: p[np.arange(V - 1)] / p[:-1].sum(), "prob_off_softmax"),
    ],
)
def test_recorded_probabilities_are_checked(tmp_path: Path, spoil: Callable[[Array], Array], criterion: str) -> None:
    x = logits()[0]
    a = candle(tmp_path, "py", x, softmax(x))
    b = candle(tmp_path, "rust", x, spoil(softmax(x)))
    record = compare(a, b)
    assert record.exit_code() == 1
    assert outcomes(record)[criterion] is Outcome.FAIL
    turned = compare(b, a)
    assert (turned.exit_code() == 1) == (criterion == "prob_sum_off")  # candle_rwkv7 checks the reference's sum only


def test_what_is_missing_is_untested_and_no_pass(tmp_path: Path) -> None:
    x = logits()[0]
    record = compare(candle(tmp_path, "py", x, softmax(x), [1]), candle(tmp_path, "rust", x))
    assert record.exit_code() == 0
    assert outcomes(record)["prob_sum_off"] is Outcome.UNSUPPORTED
    assert outcomes(record)["tokens_differ"] is Outcome.UNSUPPORTED
    assert outcomes(record)["prob_sum_off_reference"] is Outcome.PASS
    assert any("the recurrent state" in note for note in record.notes)
    assert "untested" in verdict_line(record)


def test_other_tokens_stop_the_comparison(tmp_path: Path) -> None:
    x = logits()[0]
    record = compare(candle(tmp_path, "py", x, None, [1, 2]), candle(tmp_path, "rust", x, None, [1, 3]))
    assert record.exit_code() == 1
    assert "deviation" not in numbers(record)
    assert "part at token 1" in " ".join(record.notes)


def test_shapes_before_values(tmp_path: Path) -> None:
    a, b = logits(4), logits(4)
    np.save(tmp_path / "a.npy", a)
    for name, other in (("short", b[:, :-1]), ("fewer", b[:2])):
        np.save(tmp_path / f"{name}.npy", other)
        record = compare(tmp_path / "a.npy", tmp_path / f"{name}.npy")
        assert record.exit_code() == 1
        assert outcomes(record)["shapes_differ"] is Outcome.FAIL
        assert outcomes(record)["deviation"] is Outcome.FAIL
        assert "max_abs" not in numbers(record)


def test_all_positions_against_the_last(tmp_path: Path) -> None:
    x = logits(4)
    np.save(tmp_path / "all.npy", x)
    np.save(tmp_path / "last.npy", x[-1])
    record = compare(tmp_path / "all.npy", tmp_path / "last.npy")
    assert record.exit_code() == 0
    assert any("last position" in note for note in record.notes)
    np.save(tmp_path / "first.npy", x[0])
    assert compare(tmp_path / "all.npy", tmp_path / "first.npy").exit_code() == 1


def test_an_error_at_an_early_position_is_seen(tmp_path: Path) -> None:
    x = logits(4)
    y = x.copy()
    y[1, 7] += 0.1
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", y)
    record = compare(tmp_path / "a.npy", tmp_path / "b.npy")
    assert record.exit_code() == 1
    assert "position 1, id 7" in table(record)


def test_probabilities_alone_are_compared_as_distributions(tmp_path: Path) -> None:
    x = logits()[0]
    a = candle(tmp_path, "py", x, softmax(x))
    candle(tmp_path, "rust", x, softmax(x))
    record = compare(a, tmp_path / "rust_final_probs.bin")
    assert record.exit_code() == 0
    assert outcomes(record)["kl_max"] is Outcome.PASS
    assert "deviation" not in numbers(record)
    candle(tmp_path, "rust", x, softmax(x * 1.01))
    assert compare(a, tmp_path / "rust_final_probs.bin").exit_code() == 1
    (tmp_path / "rust_final_probs.bin").write_bytes(softmax(x)[:-1].astype("<f4").tobytes())
    assert outcomes(compare(a, tmp_path / "rust_final_probs.bin"))["shapes_differ"] is Outcome.FAIL


def changed(row: int, factor: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = candle_mi()["top_predictions"]
    rows[row]["logit"] *= factor
    return rows


def test_leading_tokens_are_compared_by_id(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", candle_mi())
    b = write(tmp_path / "b.json", candle_mi(top_predictions=candle_mi()["top_predictions"][::-1]))
    record = compare(a, b)  # the same table in another order of rows
    assert record.exit_code() == 0
    assert numbers(record)["top_shared"] == 10
    assert any("all others are untested" in note for note in record.notes)
    shown = [o for o in record.observations if o.kind == "topk" and o.subject == "b.json"]
    assert [row["rank"] for row in shown[0].data["rows"]] == list(range(1, 11))
    assert shown[0].data["rows"][0]["piece"] == "t1"


@pytest.mark.parametrize("row", range(8))
def test_one_percent_in_any_leading_logit_fails(tmp_path: Path, row: int) -> None:
    a = write(tmp_path / "a.json", candle_mi())
    b = write(tmp_path / "b.json", candle_mi(top_predictions=changed(row, 1.01)))
    assert compare(a, b).exit_code() == 1
    assert compare(a, b, profile="seed").exit_code() == 0  # which is what the published thresholds let through


@pytest.mark.parametrize(("listed", "changed_to", "code"), [(0.2, 0.202, 1), (0.0, 1e-5, 0), (0.2, 0.20001, 0)])
def test_small_logits_are_neither_excused_nor_blamed(
    tmp_path: Path, listed: float, changed_to: float, code: int
) -> None:
    top, low = {"token_id": 1, "logit": 8.0}, {"token_id": 2, "logit": listed}
    a = write(tmp_path / "a.json", candle_mi(top_predictions=[top, low]))
    b = write(tmp_path / "b.json", candle_mi(top_predictions=[top, {**low, "logit": changed_to}]))
    assert compare(a, b).exit_code() == code


@pytest.mark.parametrize(
    ("rows", "failing"),
    [
        (changed(0, 0.8), {"top1_logit_diff", "top1_differs", "top5_differs"}),
        (changed(3, 0.75), {"top5_differs"}),
        (changed(0, 1.2), {"top1_logit_diff"}),
        (changed(0, math.nan), {"top1_differs", "top5_differs", "top1_logit_diff"}),
        (candle_mi()["top_predictions"][1:], {"top1_differs", "top5_differs", "top1_logit_diff"}),
    ],
)
def test_the_published_thresholds(tmp_path: Path, rows: list[dict[str, Any]], failing: set[str]) -> None:
    a = write(tmp_path / "a.json", candle_mi())
    b = write(tmp_path / "b.json", candle_mi(top_predictions=rows))
    record = compare(a, b, profile="seed")
    assert {name for name, outcome in outcomes(record).items() if outcome is Outcome.FAIL} == failing


def test_leading_tokens_against_whole_logits(tmp_path: Path) -> None:
    x = np.full(V, -9.0, dtype=np.float32)
    x[1:11] = 9.0 - np.arange(1, 11)
    a = write(tmp_path / "a.json", candle_mi())
    record = compare(a, tensors(tmp_path / "b.safetensors", logits=x, tokens=np.array([7, 8])))
    assert record.exit_code() == 0
    x[4] += 0.05
    assert compare(a, tensors(tmp_path / "b.safetensors", logits=x, tokens=np.array([7, 8]))).exit_code() == 1


def test_greedy_tokens_are_reported(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", candle_mi())
    b = write(tmp_path / "b.json", candle_mi(generated_token_ids=[1, 3]))
    assert numbers(compare(a, b))["generated_same"] == 1
    assert numbers(compare(a, a))["generated_same"] == 2


def test_state_by_component(tmp_path: Path) -> None:
    x = logits(2)
    wkv, shift = np.random.default_rng(0).normal(size=(2, 2, 4, 4)), np.ones((2, 8))
    a = tensors(tmp_path / "a.safetensors", logits=x, state__wkv=wkv, state__att_shift=shift, extra=shift)
    assert compare(a, a).exit_code() == 0
    b = tensors(tmp_path / "b.safetensors", logits=x, state__wkv=wkv.swapaxes(-1, -2), state__att_shift=shift)
    transposed = compare(a, b)
    assert transposed.exit_code() == 1
    assert "wkv" in next(m.where for m in transposed.measurements if m.name == "state_rel_rms")
    assert any("nothing here reads: extra" in note for note in transposed.notes)
    b = tensors(tmp_path / "b.safetensors", logits=x, state__wkv=wkv)
    partial = compare(a, b)
    assert partial.exit_code() == 0
    assert any("att_shift" in note for note in partial.notes)
    b = tensors(tmp_path / "b.safetensors", logits=x, state__wkv=wkv[:1], state__att_shift=shift)
    assert outcomes(compare(a, b))["shapes_differ"] is Outcome.FAIL
    b = tensors(tmp_path / "b.safetensors", logits=x)
    assert outcomes(compare(a, b))["state_rel_rms"] is Outcome.UNSUPPORTED
    wkv[0, 0, 0, 0] = np.nan
    b = tensors(tmp_path / "b.safetensors", logits=x, state__wkv=wkv, state__att_shift=shift)
    assert compare(a, b).exit_code() == 1


def test_nothing_in_common(tmp_path: Path) -> None:
    top = write(tmp_path / "b.json", candle_mi())
    ids = np.array([7, 8])
    state = tensors(tmp_path / "a.safetensors", state__wkv=np.ones(3), tokens=ids)
    other = tensors(tmp_path / "c.safetensors", state__other=np.ones(3))
    np.save(tmp_path / "d.npy", logits())
    for a, b in ((top, state), (state, top), (state, other), (top, other), (state, tmp_path / "d.npy")):
        record = compare(a, b)
        assert record.exit_code() == 5
        assert record.notes
        assert verdict_line(record).startswith("NOTHING JUDGED")


def test_missing_files_and_profiles(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", candle_mi())
    with pytest.raises(InputError, match="no such file"):
        compare(a, tmp_path / "gone.json")
    with pytest.raises(UsageError, match="Did you mean strict"):
        compare(a, a, profile="strickt")


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.json", candle_mi())
    record = compare(tmp_path / "one" / "a.json", tmp_path / "two" / "a.json")
    assert [s.id for s in record.subjects] == ["one/a.json", "two/a.json"]
    same = compare(tmp_path / "one" / "a.json", tmp_path / "one" / "a.json")
    assert [s.id for s in same.subjects] == ["a.json", "a.json (again)"]


def test_the_table_fits_a_terminal_and_obeys_no_file(tmp_path: Path) -> None:
    name = "x" * 150 + ".json"
    a = write(tmp_path / name, candle_mi())
    b = tensors(tmp_path / "b.safetensors", logits=logits(), **{"\x1b[31m" + "n" * 200: np.ones(1)})
    for record in (compare(a, a), compare(b, b)):
        text = table(record)
        assert max(len(line) for line in text.splitlines()) <= 100
        assert "\x1b" not in text
        assert text.splitlines()[-1] == verdict_line(record)


def test_every_profile_reads_and_says_why() -> None:
    assert profiles() == ["seed", "strict"]
    for name in profiles():
        assert all(c.why for c in load_profile(name).criteria)
