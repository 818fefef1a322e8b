"""What the measures say about sessions whose mistake is known, and about samples made by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backends.base import Ids, Output, Want
from backends.errors import BackendError, Unsupported
from backends.reference.session import EquationSession
from backends.weights import Weights
from harness.measures import distribution, logits, stepwise, tokenization
from harness.measures.base import all_logits, parted
from tests.backends.random_model import as_weights, random_rwkv7
from tests.harness.stub import Stub, context, evidence, numbers, where

TEXT = list(b"The same river, twice and twice again.")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return as_weights(random_rwkv7(C=32, N=16, L=2, V=256))


@pytest.fixture(scope="module")
def right(weights: Weights) -> EquationSession:
    return EquationSession(weights, "right", "f32", 1)


# ---- what they share -------------------------------------------------------------------------------


def test_parted() -> None:
    assert [part.tolist() for part in parted(np.arange(5), 2)] == [[0, 1, 2], [3, 4]]
    assert [part.tolist() for part in parted(np.arange(2), 8)] == [[0], [1]]


@pytest.mark.parametrize(
    ("token", "piece"), [(97, "a"), (10, "\\n"), (0, "\\x00"), (0xC3, "\\xc3"), (300, "#300"), (-1, "#-1")]
)
def test_pieces(token: int, piece: str) -> None:
    assert context(TEXT).piece(token) == piece


def test_text_of_ids() -> None:
    assert context(TEXT).text([97, 0xC3, 0xA9]) == "aé"
    assert context(TEXT).text([97, 0xC3]) == "a\ufffd"
    assert context(TEXT).text([97, 65535]) == "a #65535"  # padded vocabularies have ids without a token
    bare = replace(context(TEXT), tokenizer=None)
    assert (bare.text([1, 2]), bare.piece(7)) == ("1 2", "#7")


class Shaped(Stub):
    """Answers with the wrong number of positions."""

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        return Output(logits=np.zeros((len(tokens), 2, 256), dtype=np.float32))


@pytest.mark.parametrize("abilities", [("logits-all",), ()])
def test_logits_for_other_positions_are_an_error(abilities: tuple[str, ...]) -> None:
    with pytest.raises(BackendError, match=r"got logits of shape \(1, 2, 256\)"):
        list(all_logits(Shaped(abilities=abilities), np.asarray(TEXT)))


def test_rows_are_run_in_batches_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.measures import base

    sizes: list[int] = []
    monkeypatch.setattr(base, "ROW_BYTES", 3 * 4 * 256 * len(TEXT))
    rows = list(all_logits(Stub(lambda ids: sizes.append(len(ids))), np.asarray(TEXT), 7))
    assert (len(rows), sizes) == (7, [3, 3, 1])


# ---- tokenization ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "differ", "said"),
    [
        ([1, 2, 3], 0, ""),
        ([1, 9, 3], 1, "token 1: [9], not [2]"),
        ([1, 2], 1, "token 2: [], not [3]"),
        ([1, 2, 3, 4], 1, "token 3: [4], not []"),
        ([2, 3], 3, "token 0: [2], not [1]"),
    ],
)
def test_differing_ids_are_located(got: list[int], differ: int, said: str) -> None:
    sample, truth = {"ids": got, "bytes": b"x"}, {"ids": [1, 2, 3], "bytes": b"x"}
    found = tokenization.compare(sample, truth, context(TEXT))
    assert numbers(found) == {"ids_differ": differ, "bytes_differ": 0.0}
    assert where(found, "ids_differ") == said


def test_bytes_that_do_not_come_back() -> None:
    found = tokenization.compare({"ids": [1], "bytes": b"x"}, {"ids": [1], "bytes": b"y"}, context(TEXT))
    assert numbers(found)["bytes_differ"] == 1.0


def test_tokenizing_against_a_second_program() -> None:
    around = context(TEXT)
    truth = tokenization.independent(around)
    (got,) = tokenization.collect(Stub(), around, None)
    assert numbers(tokenization.compare(got, truth, around)) == {"ids_differ": 0.0, "bytes_differ": 0.0}
    shown = evidence(tokenization.observe(got, truth, around))["tokens"]
    assert (shown["same"], shown["against"], shown["pieces"][:3]) == (True, "Python's UTF-8 encoder", ["d", "e", "f"])


@pytest.mark.parametrize(("prompt", "by"), [("fibonacci", "published ids"), ("prose", "pyrwkv-tokenizer")])
def test_published_ids_overrule_the_package(prompt: str, by: str) -> None:
    around = context(TEXT)
    world = replace(around, model=replace(around.model, tokenizer="world"), case=replace(around.case, prompt=prompt))
    assert tokenization.independent(world)["by"] == by


def test_without_a_tokenizer_it_is_unsupported() -> None:
    session = Stub()
    session.tokenizer = None
    with pytest.raises(Unsupported, match="vocabulary of 256"):
        tokenization.collect(session, context(TEXT), None)
    around = context(TEXT)
    unread = replace(around, model=replace(around.model, tokenizer="", vocab_size=65536))
    with pytest.raises(Unsupported, match="the World vocabulary is not installed"):
        tokenization.independent(unread)


# ---- logits ----------------------------------------------------------------------------------------


def row(**values: float) -> Any:
    """Logits of one position: ids a, b, c, ... with these values, 300 others far below."""
    made = np.linspace(-5, -9, 300)
    for letter, value in values.items():
        made[ord(letter) - ord("a")] = value
    return made[None]


WANT = row(a=5.0, b=4.0, c=3.9, d=2.0, e=1.0, f=0.0)


def test_a_swapped_rank_shows_both_errors() -> None:
    got = row(a=5.0, b=3.95, c=4.05, d=2.0, e=1.0, f=0.0)
    around = context(TEXT, {"max_abs_last": 0.06, "rms_last": 0.05}, top=3)
    table = evidence(logits.observe({"logits": got}, {"logits": WANT}, around))["topk"]
    by_id = {line["id"]: line for line in table["rows"]}
    assert list(by_id) == [0, 1, 2]
    assert (by_id[1]["rank_ref"], by_id[1]["rank"], by_id[1]["logit"] - by_id[1]["ref"]) == (2, 3, pytest.approx(-0.05))
    assert (by_id[2]["rank_ref"], by_id[2]["rank"], by_id[2]["logit"] - by_id[2]["ref"]) == (3, 2, pytest.approx(0.15))
    found = numbers(logits.compare({"logits": got}, {"logits": WANT}, around))
    assert (found["top1_differs"], found["top5_differs"]) == (0.0, 1.0)


def test_an_id_from_nowhere_joins_the_table() -> None:
    got = row(a=5.0, b=4.0, c=3.9, d=2.0, e=1.0, f=0.0, z=9.0)
    table = evidence(logits.observe({"logits": got}, {"logits": WANT}, context(TEXT, top=3)))["topk"]
    assert [line["id"] for line in table["rows"]] == [0, 1, 2, 25]
    assert (table["rows"][-1]["rank"], table["rows"][-1]["rank_ref"]) == (1, 26)


@pytest.mark.parametrize(("honest", "unexplained"), [(0.04, 2.0), (0.06, 0.0), (0.0, 2.0)])
def test_a_swap_is_explained_by_honest_errors_of_both_logits(honest: float, unexplained: float) -> None:
    """The gap of b and c is 0.1: closed by two errors of 0.06, not by two of 0.04."""
    got = row(a=5.0, b=3.9, c=4.0, d=2.0, e=1.0, f=0.0)
    found = logits.compare({"logits": got}, {"logits": WANT}, context(TEXT, {"max_abs_last": honest}))
    assert numbers(found)["top5_unexplained"] == unexplained


def test_swaps_are_predicted_with_their_pieces() -> None:
    got = row(a=5.0, b=3.9, c=4.0, d=2.0, e=1.0, f=0.0)
    around = context(TEXT, {"rms_last": 0.05})
    swaps = evidence(logits.observe({"logits": got}, {"logits": WANT}, around))["swaps"]
    assert [pair["swapped"] for pair in swaps["pairs"]][:3] == [False, True, False]
    assert swaps["pairs"][1]["probability"] == pytest.approx(0.0786, abs=1e-3)  # Phi(-0.1 / (0.05 sqrt 2))
    assert (swaps["pairs"][1]["piece_a"], swaps["pairs"][1]["piece_b"]) == ("\\x01", "\\x02")
    assert "swaps" not in evidence(logits.observe({"logits": got}, {"logits": WANT}, context(TEXT)))


def test_the_worst_logit_is_located() -> None:
    want = np.zeros((len(TEXT), 300))
    got = want.copy()
    got[7, 123] = -2.0
    found = logits.compare({"logits": got}, {"logits": want}, context(TEXT))
    assert where(found, "max_abs") == "token 7, id 123"
    found = logits.compare({"logits": got[7:8]}, {"logits": want}, context(TEXT))  # last logits only
    assert where(found, "max_abs") == f"token {len(TEXT) - 1}, id 123"


def test_either_side_may_give_only_the_last_logits() -> None:
    want = np.random.default_rng(0).normal(size=(5, 300))
    for got, truth in ((want[-1:], want), (want, want[-1:])):
        found = numbers(logits.compare({"logits": got}, {"logits": truth}, context(TEXT)))
        assert found["max_abs"] == 0.0


def test_one_bad_position_moves_the_rms_and_not_its_median() -> None:
    want = np.zeros((9, 300))
    got = want + 0.01
    got[0] += 10.0
    found = numbers(logits.compare({"logits": got}, {"logits": want}, context(TEXT)))
    assert found["rms_median"] == pytest.approx(0.01)
    assert found["rms"] > 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_of_broken_logits_is_finite(bad: float) -> None:
    got = WANT.copy()
    got[0, 200] = bad
    with np.errstate(all="ignore"):
        found = numbers(logits.compare({"logits": got}, {"logits": WANT}, context(TEXT)))
    for name in ("rms", "rms_median", "max_abs", "rms_last", "max_abs_last", "top1_differs", "top5_differs"):
        assert not math.isfinite(found[name]), name
    assert math.isnan(found["top5_unexplained"])


# ---- distribution ----------------------------------------------------------------------------------


def test_distribution_against_hand_computed_values() -> None:
    """Two tokens in use; position 2 predicts nothing that is known."""
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    want = np.log(np.stack([p, p, p]))
    got = np.log(np.stack([q, p, q]))
    around = context([0, 1, 0])
    sample: dict[str, Any] = {"logits": got}
    found = numbers(distribution.compare(sample, {"logits": want}, around))
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found["kl_max"] == pytest.approx(kl)
    assert found["kl_mean"] == pytest.approx(kl / 2)
    assert found["ppl"] == pytest.approx(math.exp(-(math.log(0.75) + math.log(0.5)) / 2))
    assert found["ppl_ratio_off"] == pytest.approx(math.log(0.75 / 0.5) / 2)
    assert found["prob_linf"] == pytest.approx(0.25)
    assert found["top1_differs"] == pytest.approx(0.5)  # an even truth: its first id counts as first
    ladder = evidence(distribution.observe(sample, {"logits": want}, around))["ladder"]
    assert ladder["positions"] == 2
    assert ladder["kl"]["max"] == pytest.approx(kl)


# ---- stepwise --------------------------------------------------------------------------------------


def series(errors: list[float], state_errors: list[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sample whose logits are off by these errors step by step, and its state at checkpoints."""
    truth = {"logits": np.zeros((len(errors), 50)), "states": [{"wkv": np.ones(4)} for _ in state_errors]}
    noise = np.random.default_rng(0).choice([-1.0, 1.0], size=(len(errors), 50))
    got = {"logits": np.array(errors)[:, None] * noise, "states": [{"wkv": 1 + np.full(4, e)} for e in state_errors]}
    return got, truth


def test_stepwise_numbers() -> None:
    got, truth = series([0.1] * 12 + [0.4] * 4, [0.01, 0.3, 0.2])
    found = stepwise.compare(got, truth, context(TEXT))
    by_name = numbers(found)
    assert by_name["rms_tail"] == pytest.approx(0.4)
    assert by_name["rms"] == pytest.approx(math.sqrt((12 * 0.01 + 4 * 0.16) / 16))
    assert by_name["state_rel_rms"] == pytest.approx(0.3)
    assert where(found, "state_rel_rms") == "wkv at checkpoint 2 of 3"
    assert where(found, "max_abs") == "step 12"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_state_with_a_nan_is_never_hidden(at: int) -> None:
    got, truth = series([0.1] * 16, [0.01, 0.3, 0.2])
    got["states"][at] = {"wkv": np.array([1.0, math.nan, 1.0, 1.0])}
    by_name = numbers(stepwise.compare(got, truth, context(TEXT)))
    assert math.isnan(by_name["state_rel_rms"])
    assert math.isnan(by_name["state_max_abs"])
    assert math.isnan(evidence(stepwise.observe(got, truth, context(TEXT)))["series"]["state"][at])


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([0.1 + 0.001 * (i % 3) for i in range(64)], "flat"),
        ([0.01 * (i + 1) for i in range(64)], "accumulates"),
        ([0.01 * min(i + 1, 16) for i in range(64)], "saturates"),
        ([math.nan] * 64, "unknown"),
    ],
)
def test_drift_is_told_apart(errors: list[float], kind: str) -> None:
    got, truth = series(errors, [0.1] * 8)
    shown = evidence(stepwise.observe(got, truth, context(TEXT)))["series"]
    assert shown["drift"]["kind"] == kind
    assert shown["step"] == list(range(1, 65))
    assert shown["state_step"] == [8 * i for i in range(1, 9)]


def test_honest_rows_are_collected_in_one_batch(right: EquationSession) -> None:
    around = context(TEXT, tokens=12, checkpoints=3)
    truth = stepwise.collect(right, around, None)[0]
    rows = stepwise.collect(right, around, truth, 2)
    assert len(rows) == 2
    assert rows[1]["logits"].shape == truth["logits"].shape == (12, 256)
    assert numbers(stepwise.compare(rows[1], truth, around))["state_rel_rms"] == pytest.approx(0, abs=1e-6)
    band = stepwise.band(rows, truth)
    assert len(band["rms_max"]) == 12
    assert len(band["state_max"]) == len(band["state_median"]) == 3


def test_a_candidate_is_fed_one_by_one() -> None:
    sizes: list[int] = []
    session = Stub(lambda ids: sizes.append(ids.shape[1]))
    around = context(TEXT, tokens=12, checkpoints=3)
    truth = stepwise.collect(session, around, None)[0]
    assert sizes == [4, 4, 4]
    stepwise.collect(session, around, truth)
    assert sizes[3:] == [1] * 12
