"""A criterion states what is allowed; everything else is no pass."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import HarnessError, UsageError
from harness import judge as module
from harness import suite
from harness.judge import BOUNDS, Criterion, Profile, again, judge, load, parse, profiles
from harness.truth import measure_of
from reports.record import Measurement, Observation, Outcome, Record, Subject, Verdict
from tests.harness import fakes
from tests.harness.stub import measured, small_suites

HEAD = 'version = 1\nsummary = "s"\n[[criterion]]\nsuite = "logits"\nmeasure = "rms"\n'
WHY = 'why = "because"\n'


def record(
    value: float | None = 0.0, honest: float | None = None, observations: tuple[Observation, ...] = (), **info: Any
) -> Record:
    """One candidate, one case, one number; `honest` is what honest runs in bf16 reached."""
    found = [Measurement("logits", "en", "a", "rms", value, "logit", "token 3")]
    if honest is not None:
        found.append(Measurement("logits", "en", "honest@bf16", "rms", honest))
    info = {"dtype": "bf16", "device": "cpu", "abilities": ["state"], **info}
    subjects = (Subject("ref", "reference"), Subject("honest@bf16", "honest"), Subject("a", "candidate", info))
    return Record(
        id="1", created="", status="complete", model={"version": "7"}, subjects=subjects, measurements=tuple(found),
        observations=observations, suites=({"name": "logits", "cases": [{"name": "en"}]},),
    )  # fmt: skip


def profile(**criterion: Any) -> Profile:
    return Profile(
        "p", 1, "s", (Criterion("p", **{"suite": "logits", "measure": "rms", "why": "because", **criterion}),)
    )


def verdict(made: Record, **criterion: Any) -> Verdict:
    (only,) = judge(made, profile(**criterion))
    return only


@pytest.mark.parametrize(
    ("bound", "passes", "fails"),
    [
        ({"max": 1.0}, [1.0, 0.5, -7.0], [1.0000001, 2.0]),
        ({"below": 1.0}, [0.999999, -7.0], [1.0, 2.0]),
        ({"min": 1.0}, [1.0, 2.0], [0.999999, -7.0]),
        ({"equals": 0}, [0.0, -0.0], [1.0, 1e-300]),
        ({"envelope": 2.0}, [1.0, 0.0], [1.0000001]),
        ({"envelope": 2.0, "floor": 4.0}, [4.0, 1.0], [4.0000001]),
        ({"envelope": 2.0, "floor": 0.1}, [1.0], [1.0000001]),
    ],
)
def test_every_bound(bound: dict[str, float], passes: list[float], fails: list[float]) -> None:
    for value in passes:
        assert verdict(record(value, honest=0.5), **bound).outcome is Outcome.PASS, value
    for value in fails:
        found = verdict(record(value, honest=0.5), **bound)
        assert found.outcome is Outcome.FAIL, value
        assert found.detail.startswith("rms is ")
        assert "at token 3; allowed is" in found.detail


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_finite_never_passes(kind: str, value: float | None) -> None:
    found = verdict(record(value, honest=0.5), **{kind: 1.0})
    assert found.outcome is Outcome.FAIL
    assert found.detail


@given(st.floats(), st.floats(), st.sampled_from(BOUNDS), st.one_of(st.none(), st.floats()))
def test_a_pass_is_finite_and_within(value: float, limit: float, kind: str, honest: float | None) -> None:
    found = verdict(record(value, honest=honest), **{kind: limit})
    if found.outcome is Outcome.PASS:
        assert math.isfinite(value)
        assert found.bound is not None
        assert not math.isnan(found.bound)
        assert {"min": value >= found.bound, "equals": value == found.bound, "below": value < found.bound}.get(
            kind, value <= found.bound
        )
    else:
        assert found.outcome is Outcome.FAIL


def test_a_missing_measurement_is_a_fail_in_words() -> None:
    found = verdict(replace(record(), measurements=()), max=1.0)
    assert (found.outcome, found.detail) == (Outcome.FAIL, "not measured, and a missing number is no pass")


@pytest.mark.parametrize(
    ("honest", "words"),
    [
        (None, "no limit: there are no honest runs in bf16"),
        (math.inf, "no limit: honest runs are not finite themselves in bf16"),
        (math.nan, "no limit: honest runs are not finite themselves in bf16"),
    ],
)
def test_without_a_limit_nothing_passes(honest: float | None, words: str) -> None:
    found = verdict(record(0.0, honest=honest), envelope=2.0, floor=1.0)
    assert (found.outcome, found.detail, found.bound) == (Outcome.FAIL, words, None)


def test_the_envelope_is_of_the_subjects_own_format() -> None:
    found = verdict(record(0.0, honest=0.5, dtype="f32"), envelope=2.0)
    assert found.detail == "no limit: there are no honest runs in f32"


def test_the_limit_is_said_with_its_numbers() -> None:
    assert verdict(record(0.1, honest=0.5), envelope=2.0).limit == "<= 1 = 2 x honest"
    floor = verdict(record(0.1, honest=0.5), envelope=2.0, floor=3.0)
    assert floor.limit == "<= 3, the floor; 2 x honest is 1"
    assert floor.bound == 3.0


def test_a_missing_ability_is_unsupported_only_if_the_number_is_missing() -> None:
    bare = replace(record(), measurements=())
    assert verdict(bare, max=1.0, needs="trace").outcome is Outcome.UNSUPPORTED
    assert verdict(bare, max=1.0, needs="state").outcome is Outcome.FAIL
    assert verdict(record(5.0), max=1.0, needs="trace").outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("when", "applies"),
    [
        ({"dtype": ("bf16",)}, True),
        ({"dtype": ("f32", "bf16")}, True),
        ({"dtype": ("f32",)}, False),
        ({"device": ("cuda",)}, True),
        ({"device": ("cpu",)}, False),
        ({"version": ("7",)}, True),
        ({"version": ("6",)}, False),
        ({"dtype": ("bf16",), "device": ("cpu",)}, False),
        ({}, True),
    ],
)
def test_when(when: dict[str, tuple[str, ...]], applies: bool) -> None:
    assert bool(judge(record(device="cuda:1"), profile(max=1.0, when=when))) is applies


def test_a_criterion_may_be_for_some_cases() -> None:
    assert judge(record(), profile(max=1.0, cases=("en",)))
    assert not judge(record(), profile(max=1.0, cases=("zh",)))


def test_only_candidates_are_judged() -> None:
    assert {v.subject for v in judge(record(0.0, honest=0.5), profile(max=1.0))} == {"a"}


@pytest.mark.parametrize("outcome", ["error", "unsupported", "skipped"])
def test_an_event_stands_for_the_whole_case(outcome: str) -> None:
    event = Observation("logits", "en", "a", module.EVENT, {"outcome": outcome, "detail": "in words"})
    (only,) = judge(record(observations=(event,)), profile(max=1.0))
    assert (only.outcome.value, only.detail, only.criterion) == (outcome, "in words", "p/logits")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + WHY + "maximum = 1", "logits.rms: unknown key maximum; known: "),
        (HEAD + WHY + "max = 1\nmin = 0", "exactly one of max, below, min, equals, envelope"),
        (HEAD + WHY, "exactly one of"),
        (HEAD + "max = 1", "every limit says why"),
        (HEAD + 'why = ""\nmax = 1', "every limit says why"),
        (HEAD + WHY + 'max = 1\nwhen = { os = "linux" }', "unknown condition os; known: dtype, device, version"),
        (HEAD.replace('suite = "logits"\n', "") + WHY + "max = 1", "suite and measure are needed"),
        (HEAD.replace('summary = "s"\n', "") + WHY + "max = 1", "the keys are version, summary and"),
        (HEAD.replace("[[criterion]]", "[[criteria]]") + WHY + "max = 1", "the keys are version, summary and"),
    ],
)
def test_a_wrong_profile_is_an_error_in_words(text: str, words: str) -> None:
    with pytest.raises(HarnessError, match="profile mine") as caught:
        parse(text, "mine")
    assert words in str(caught.value)


def test_an_unknown_profile_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="Did you mean strict"):
        load("strickt")


def test_conditions_may_be_one_or_many() -> None:
    found = parse(HEAD + WHY + 'max = 1\nwhen = { dtype = "f32", device = ["cpu", "cuda"] }', "mine").criteria[0]
    assert found.when == {"dtype": ("f32",), "device": ("cpu", "cuda")}


@pytest.mark.parametrize("name", profiles())
def test_a_shipped_profile_is_whole(name: str) -> None:
    found = load(name)
    assert json.loads(json.dumps(found.facts())) == found.facts()
    for c in found.criteria:
        assert c.suite in suite.names(), c.id
        assert set(c.cases) <= {case.name for case in suite.load(c.suite).cases}, c.id
        assert c.bound()[0] != "envelope" or suite.load(c.suite).envelope, f"{c.id}: its suite has no honest runs"
        assert math.isfinite(c.bound()[1])
        assert len(c.why) > 10
    selected = [(c.suite, c.measure, dtype, device, case) for c in found.criteria for dtype in _allowed(c, "dtype")
                for device in _allowed(c, "device") for case in c.cases or ("",)]  # fmt: skip
    assert len(set(selected)) == len(selected), "two criteria on one number of one subject"


def _allowed(c: Criterion, key: str) -> tuple[str, ...]:
    return c.when.get(key, {"dtype": ("f64", "f32", "bf16", "f16"), "device": ("cpu", "cuda", "mps")}[key])


@pytest.fixture(scope="module")
def real() -> Record:
    """The right program through every suite but speed, which has no criteria."""
    suites = tuple(name for name in suite.names() if name != "speed")
    with fakes.registered(), pytest.MonkeyPatch.context() as patch:
        small_suites(patch)
        return measured("right", suites=suites)


@pytest.mark.parametrize("name", profiles())
def test_every_criterion_looks_at_a_number_that_exists(real: Record, name: str) -> None:
    produced = {(m.suite, m.name) for m in real.measurements if m.subject == "right"}
    looked_at = {(c.suite, c.measure) for c in load(name).criteria if c.suite != "sampling"}  # needs a port's own
    assert looked_at <= produced, f"nobody measures {looked_at - produced}"


def test_every_envelope_has_its_honest_number(real: Record) -> None:
    honest = {(m.suite, m.name) for m in real.measurements if m.subject == "honest@f32"}
    for c in load("strict").criteria:
        if c.bound()[0] == "envelope":
            assert (c.suite, c.measure) in honest, c.id


def test_the_right_program_passes(real: Record) -> None:
    other = [v for v in real.verdicts if v.outcome is not Outcome.PASS]
    assert {(v.suite, v.outcome) for v in other} <= {("sampling", Outcome.UNSUPPORTED)}
    assert {(v.suite) for v in real.verdicts} == set(suite.names()) - {"speed"}


def test_every_suite_is_judged_by_strict() -> None:
    judged = {c.suite for c in load("strict").criteria}
    assert judged == set(suite.names()) - {"speed"}
    assert all(measure_of(suite.load(name)) for name in judged)


def test_an_old_record_is_judged_again_alike(real: Record) -> None:
    read = Record.from_json(real.to_json())
    assert again(read, load("strict")).verdicts == real.verdicts
    other = again(read, load("seed"))
    assert other.profile["name"] == "seed"
    assert {v.criterion.partition("/")[0] for v in other.verdicts} == {"seed"}
    assert again(other, load("strict")) == read


def test_the_seed_profile_is_the_published_one() -> None:
    """Top-1 exact, top-1 logit within 1.0 on CPU and 2.0 on GPU, top-5 exact: no more; beside it candle's sampling."""
    published = [c for c in load("seed").criteria if c.suite != "sampling"]
    rules = [(c.suite, c.measure, c.bound(), dict(c.when)) for c in published]
    assert rules == [
        ("logits", "top1_differs", ("equals", 0), {}),
        ("logits", "top1_logit_diff", ("below", 1.0), {"device": ("cpu",)}),
        ("logits", "top1_logit_diff", ("below", 2.0), {"device": ("cuda",)}),
        ("logits", "top5_differs", ("equals", 0), {}),
    ]
    assert all(not c.cases and not c.needs for c in published)
    others = {c.measure for c in load("seed").criteria if c not in published}
    assert others == {"distance_candle", "ids_differ_candle"}


@pytest.mark.parametrize(("device", "value", "passes"), [("cpu", 0.999, True), ("cpu", 1.0, False), ("cuda:0", 1.999, True), ("cuda:0", 2.0, False)])  # fmt: skip # noqa: E501
def test_the_seeds_logit_difference(device: str, value: float, passes: bool) -> None:
    numbers = [Measurement("logits", "en", "a", name, v) for name, v in
               (("top1_differs", 0.0), ("top1_logit_diff", value), ("top5_differs", 0.0))]  # fmt: skip
    found = judge(replace(record(device=device), measurements=tuple(numbers)), load("seed"))
    assert len(found) == 3
    assert all(v.outcome is Outcome.PASS for v in found) is passes
