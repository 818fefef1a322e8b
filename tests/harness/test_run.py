"""A whole run: what is kept, taken over, blamed on whom; and that honest programs pass where wrong ones fail."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends import registry
from backends.base import Ids, Output, Want
from backends.errors import BackendError
from backends.reference.session import EquationSession
from backends.weights import Weights
from harness import bench, candidates, cli, envelope, suite
from harness.job import Job, make_job
from harness.run import job_key
from reports import render
from reports.record import Measurement, Observation, Outcome, Record
from tests.harness import fakes
from tests.harness.stub import measured, outcomes, small_suites, verdict_of

ALL = ("tokenization", "logits", "distribution", "stepwise", "consistency", "generation", "state")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)


@pytest.fixture
def dies_when_timed() -> Iterator[None]:
    class Racer(EquationSession):
        def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
            if not want.fetch:
                raise RuntimeError("out of memory")
            return super()._forward(tokens, state, want)

    with fakes.registered(racer=lambda w: Racer(w, "racer", "f32", 1)):
        yield


@pytest.fixture
def registered() -> Iterator[None]:
    with fakes.registered(dies_later=lambda w: fakes.Dies(w, 3)):
        yield


# ---- one run ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
def test_subjects_in_order_with_their_roles() -> None:
    record = measured("right", "wrong", suites=("logits",))
    assert [(s.id, s.role) for s in record.subjects] == [
        ("reference-f64", "reference"), ("honest@f32", "honest"), ("right", "candidate"), ("wrong", "candidate"),
    ]  # fmt: skip
    assert record.status == "complete"
    assert outcomes(record, "right") == dict.fromkeys(outcomes(record, "wrong"), "pass")
    assert "fail" in outcomes(record, "wrong").values()


@pytest.mark.usefixtures("registered")
def test_one_that_dies_keeps_its_numbers_and_loses_nobody_elses() -> None:
    record = measured("dies_later", "right", suites=("logits", "distribution"))
    by_case = {v.case: v.outcome for v in record.verdicts if v.subject == "dies_later"}
    assert by_case == {"fibonacci": Outcome.PASS, "code": Outcome.PASS, "long": Outcome.PASS}
    record = measured("dies_later", "right", suites=("generation", "distribution"))
    dead = [v for v in record.verdicts if v.subject == "dies_later"]
    assert {(v.suite, v.case, v.outcome) for v in dead} == {
        ("generation", "fibonacci", Outcome.ERROR), ("generation", "prose", Outcome.ERROR),
        ("distribution", "long", Outcome.ERROR),
    }  # fmt: skip
    assert {v.detail for v in dead} == {"RuntimeError: out of memory"}
    assert set(outcomes(record, "right").values()) == {"pass"}
    assert record.exit_code() == 4


@pytest.mark.usefixtures("registered")
def test_chunk_edges_and_batch_rows_are_judged(weights_with_faults: None) -> None:
    record = measured("forgets", "leaks", suites=("consistency",))
    assert outcomes(record, "forgets")["strict/consistency.max_abs"] == "fail"
    assert verdict_of(record, "strict/consistency.max_abs", "forgets").detail.count("chunks of") <= 1
    leaks = verdict_of(record, "strict/consistency.max_abs", "leaks")
    assert (leaks.outcome, "last row of 3" in leaks.detail) == (Outcome.FAIL, True)


@pytest.fixture
def weights_with_faults() -> Iterator[None]:
    from tests.harness.test_measures_runs import ForgetsAtEdges, LeaksBetweenRows

    kinds = {
        "forgets": lambda w: ForgetsAtEdges(w, "forgets", "f32", 1),
        "leaks": lambda w: LeaksBetweenRows(w, "leaks", "f32", 1),
    }
    with fakes.registered(**kinds):
        yield


def test_an_unknown_number_format_is_an_error() -> None:
    def odd(weights: Weights) -> EquationSession:
        made = EquationSession(weights, "odd", "f32", 1)
        made.info = replace(made.info, dtype="float32")
        return made

    with fakes.registered(odd=odd):
        record = measured("odd", suites=("logits",))
    assert {v.outcome for v in record.verdicts} == {Outcome.ERROR}
    assert "states dtype 'float32'; known: f64, f32" in record.verdicts[0].detail


def test_a_vocabulary_without_tokenizer_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    from backends import checkpoint
    from tests.backends.random_model import as_weights, random_rwkv7

    small = as_weights(random_rwkv7(C=32, N=16, L=1, V=97))
    monkeypatch.setattr(checkpoint, "open_checkpoint", lambda model: small)
    with fakes.registered():
        record = measured("right", suites=("tokenization", "logits", "generation"))
    assert set(outcomes(record, suite="tokenization").values()) == {"unsupported"}
    assert set(outcomes(record, suite="logits").values()) == {"pass"}
    assert any("fed as their bytes, taken modulo" in note for note in record.notes)


def test_json_survives_words_that_look_like_numbers() -> None:
    def sick(weights: Weights) -> EquationSession:
        raise OSError("NaN in tensor 3, -Infinity in 4")

    with fakes.registered(sick=sick):
        record = measured("sick", suites=("logits",))
    assert cli.digest(record, [])["failures"][0]["detail"] == "OSError: NaN in tensor 3, -Infinity in 4"


# ---- the reference ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("suites", [("logits",), ("distribution", "logits")])
def test_a_reference_that_breaks_is_blamed_itself(suites: tuple[str, ...]) -> None:
    kept: list[Record] = []
    with pytest.raises(BackendError, match=r"the reference dying broke on .*the device fell off the bus"):
        measured("right", suites=suites, keep=kept.append, reference="dying")
    assert kept[-1].status == "crashed"
    assert kept[-1].exit_code() == 4
    assert not [o for o in kept[-1].observations if o.kind == "event"]


@pytest.mark.usefixtures("registered")
def test_also_where_a_candidate_is_the_first_to_need_it() -> None:
    """A float64 candidate has no honest runs, so that nobody has asked the reference before."""
    with pytest.raises(BackendError, match="the reference dying broke on distribution, long"):
        measured("reference-f64", suites=("distribution",), reference="dying")


@pytest.mark.usefixtures("registered")
def test_one_honest_run_is_enough_to_run() -> None:
    record = measured("right", suites=("stepwise", "consistency", "generation"), runs=1)
    assert not {v.outcome for v in record.verdicts} & {Outcome.ERROR, Outcome.UNSUPPORTED}


@pytest.mark.usefixtures("registered")
def test_a_reference_that_lacks_an_ability_makes_it_unsupported() -> None:
    record = measured("right", suites=("logits", "stepwise", "distribution"), reference="modest")
    assert set(outcomes(record, suite="logits").values()) == {"pass"}
    assert set(outcomes(record, suite="stepwise").values()) == {"unsupported"}
    details = {v.detail for v in record.verdicts if v.suite != "logits"}
    assert "the suite needs state, which the reference modest does not offer" in details


@pytest.mark.usefixtures("registered")
def test_nothing_is_asked_of_the_reference_where_nothing_is_compared_with_it() -> None:
    record = measured("right", suites=("state", "consistency", "tokenization"), reference="dying")
    assert set(outcomes(record).values()) == {"pass"}


# ---- what is kept ----------------------------------------------------------------------------------


def interrupted(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int, *subjects: str) -> Record:
    """The record of a run that ended at a candidate's unit of that number."""
    original, left, kept = candidates._unit, [after], list[Record]()

    def unit(*arguments: Any) -> None:
        if not left[0]:
            raise error
        left[0] -= 1
        original(*arguments)

    monkeypatch.setattr(candidates, "_unit", unit)
    with pytest.raises(type(error)):
        measured(*subjects, suites=("logits", "stepwise"), keep=kept.append)
    monkeypatch.setattr(candidates, "_unit", original)
    return Record.from_json(kept[-1].to_json())


class Killed(BaseException):
    """Nothing that a run may catch."""


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "interrupted"), (Killed(), "crashed")])
def test_however_a_run_ends_it_is_kept(monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str) -> None:
    record = interrupted(monkeypatch, error, 2, "right")
    assert record.status == status
    assert {(m.suite, m.case) for m in record.measurements if m.subject == "right"} == {
        ("logits", "fibonacci"), ("logits", "code"),
    }  # fmt: skip
    assert record.finished


@pytest.mark.usefixtures("registered")
def test_resuming_takes_numbers_over_and_measures_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    early = interrupted(monkeypatch, KeyboardInterrupt(), 1, "right")
    marked = replace(early, measurements=tuple(_marked(m) for m in early.measurements))
    record = measured("right", suites=("logits", "stepwise"), earlier=marked)
    assert (record.id, record.created, record.status) == (early.id, early.created, "complete")
    taken = next(m for m in record.measurements if (m.subject, m.case, m.name) == ("right", "fibonacci", "rms"))
    assert taken.value == 123.0
    assert verdict_of(record, "strict/logits.rms", "right").outcome is Outcome.FAIL  # judged by what was taken over
    fresh = measured("right", suites=("logits", "stepwise"))
    assert sorted((m.suite, m.case, m.subject, m.name) for m in record.measurements) == sorted(
        (m.suite, m.case, m.subject, m.name) for m in fresh.measurements
    )
    assert sorted((o.suite, o.case, o.subject, o.kind) for o in record.observations) == sorted(
        (o.suite, o.case, o.subject, o.kind) for o in fresh.observations
    )
    assert any("resumed" in note for note in record.notes)


def _marked(m: Measurement) -> Measurement:
    return replace(m, value=123.0) if (m.subject, m.name) == ("right", "rms") else m


@pytest.mark.usefixtures("registered")
def test_resuming_does_not_run_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured("right", suites=("logits",))
    monkeypatch.setattr(candidates, "_unit", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(envelope, "measure_envelope", lambda *_: pytest.fail("honest runs again"))
    record = measured("right", suites=("logits",), earlier=whole)
    assert record.verdicts == whole.verdicts


@pytest.mark.usefixtures("registered")
def test_what_broke_is_tried_again() -> None:
    """A dead subject's name now opens a sound program."""
    broken = measured("dies_later", suites=("generation",))
    assert {v.outcome for v in broken.verdicts} == {Outcome.ERROR}
    with fakes.registered(dies_later=lambda w: EquationSession(w, "right", "f32", 1)):
        record = measured("dies_later", suites=("generation",), earlier=broken)
    assert set(outcomes(record).values()) == {"pass"}
    assert not any(s.error for s in record.subjects)


@pytest.mark.usefixtures("registered")
def test_speed_is_never_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: iter([Measurement("speed", "long", "right", "decode", 2.0)]))
    whole = measured("right", suites=("logits", "speed"))
    old = Measurement("speed", "long", "right", "decode", 1.0)
    sample = Observation("speed", "long", "right", "samples", {})
    earlier = replace(whole, measurements=(*whole.measurements, old), observations=(*whole.observations, sample))
    record = measured("right", suites=("logits", "speed"), earlier=earlier)
    assert [m.value for m in record.measurements if m.name == "decode"] == [2.0]
    assert [o.kind for o in record.observations if o.suite == "speed"] == ["opening"]  # of this run


def test_the_key_follows_the_checkpoints_files(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(b"one")
    key = job_key(Job(str(file), ("torch-cpu-f32",)))
    assert key == job_key(Job(str(file), ("torch-cpu-f32",)))
    file.write_bytes(b"another")
    assert key != job_key(Job(str(file), ("torch-cpu-f32",)))
    folder = job_key(Job(str(tmp_path), ("torch-cpu-f32",)))
    (tmp_path / "config.json").write_text("{}")
    assert folder != job_key(Job(str(tmp_path), ("torch-cpu-f32",)))
    assert job_key(make_job("conformance")) == job_key(make_job("conformance"))


# ---- speed -----------------------------------------------------------------------------------------


def only_names(sessions: Any, context: Any, progress: Any, limits: Any, broken: Any) -> Iterator[Measurement]:
    """A bench that takes no time."""
    for name, session in sessions.items():
        try:
            session.forward([1], want=Want(fetch=False))
        except Exception as error:
            broken(bench.BrokenSubjectError(name, error))
            continue
        yield Measurement("speed", context.case.name, name, "decode", 1.0, "tokens/s")


@pytest.mark.usefixtures("dies_when_timed")
@pytest.mark.parametrize("suites", [("logits", "speed"), ("speed",)])
def test_only_sound_subjects_race_and_each_is_told_why_not(
    monkeypatch: pytest.MonkeyPatch, suites: tuple[str, ...]
) -> None:
    monkeypatch.setattr(bench, "measure", only_names)
    subjects = ("racer", "modest", "dying", "wrong", "nan", "unopenable", "right")
    record = measured(*subjects, suites=suites, runs=3)
    assert {m.subject for m in record.measurements if m.name == "decode"} == {"right"}
    opened = {o.subject for o in record.observations if (o.suite, o.kind) == ("speed", "opening")}
    assert opened == {"right", "racer"}, "what was found before somebody broke is kept"
    speed = {v.subject: (v.outcome.value, v.detail) for v in record.verdicts if v.suite == "speed"}
    wrong = ("skipped", "no speed is stated for a subject whose logits are wrong")
    assert speed["racer"] == ("error", "RuntimeError: out of memory")
    assert speed["modest"] == ("unsupported", "the suite needs state, which this backend does not offer")
    assert speed["wrong"] == speed["nan"] == wrong
    assert speed["unopenable"] == ("error", "OSError: no such device")
    assert speed["dying"] == (wrong if "logits" in suites else ("error", "RuntimeError: the device fell off the bus"))
    assert set(speed) == set(subjects) - {"right"}


@pytest.mark.usefixtures("registered")
def test_a_real_race(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = suite.load

    def short(name: str) -> suite.Suite:
        found = loaded(name)
        if name != "speed":
            return found
        options = {"prefill": [4], "decode": 2, "rounds": 3, "batches": [1]}
        return replace(found, cases=tuple(replace(case, options=options) for case in found.cases))

    monkeypatch.setattr(suite, "load", short)
    record = measured("right", "torch-cpu-f32", suites=("speed",))
    assert {m.subject for m in record.measurements if m.unit == "tokens/s"} == {"right", "torch-cpu-f32"}
    assert all(m.value and m.value > 0 for m in record.measurements if m.unit == "tokens/s")
    assert record.exit_code() == 5  # numbers, and no criterion that looks at them


def test_registered_fakes_are_gone() -> None:
    assert "right" not in registry.table()


def test_every_section_of_a_real_record_can_be_drawn() -> None:
    text = render.html(measured("torch-cpu-f32", "torch-compile@bf16", suites=ALL))
    assert "State error over forced steps" in text
    assert "Not drawn" not in text
