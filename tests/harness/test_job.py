"""Jobs: what is typed becomes plain, frozen data with a key."""

import json
import pickle
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from backends import registry
from backends.errors import UsageError
from harness import job as module
from harness.job import Job, left_out, make_job, unavailable


def test_a_plain_job() -> None:
    job = make_job("conformance")
    assert job.subjects[:3] == ("torch-cpu-f32", "torch-compile", "torch-compile@bf16")
    assert job.reference == "reference-f64"
    assert job.suites[0] == "tokenization"
    assert json.loads(json.dumps(job.plain())) == job.plain()
    assert pickle.loads(pickle.dumps(job)) == job


def test_a_job_is_frozen() -> None:
    with pytest.raises(AttributeError):
        make_job("conformance").model = "other"  # type: ignore[misc]


def test_subjects_and_suites_named_twice_count_once() -> None:
    job = make_job("conformance", ("torch-compile@f32", "torch-compile"), ("logits", "state", "logits"))
    assert job.subjects == ("torch-compile",)
    assert job.suites == ("logits", "state")


def test_the_key_hangs_on_everything_that_is_measured() -> None:
    job = Job("m", ("torch-cpu-f32",))
    assert job.key() == Job("m", ("torch-cpu-f32",)).key()
    changes: list[dict[str, Any]] = [
        {"model": "n"}, {"subjects": ("torch-compile",)}, {"reference": "torch-cpu-f32"}, {"suites": ("logits",)},
        {"profile": "seed"}, {"threads": 2}, {"seed": 1}, {"honest_runs": 3},
    ]  # fmt: skip
    keys = {replace(job, **change).key() for change in changes} | {job.key(), job.key("other code")}
    assert len(keys) == len(changes) + 2


class Here:
    """Which of the backends that hang on a machine can run, and what other packages offer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self("")

    def __call__(self, *can: str, more: tuple[registry.Backend, ...] = ()) -> None:
        names = (*module.ENGINES, "torch-cuda-bf16")
        ours = {row.name: row for row in registry._TABLE}
        reasons = {name: "" if name in can else "not here" for name in names}
        rows = {name: replace(ours[name], probe=partial(str, reasons[name])) for name in names}
        table = {**ours, **rows, **{row.name: row for row in more}}
        self.monkeypatch.setattr(module, "table", lambda: table)
        self.monkeypatch.setattr(registry, "table", lambda: table)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch)


def test_dtype_and_device_narrow_the_defaults(here: Here) -> None:
    assert make_job("m", dtype="bf16").subjects == ("torch-cpu-f32", "torch-compile@bf16")
    assert make_job("m", dtype="f32").subjects == ("torch-cpu-f32", "torch-compile")
    here("official")
    assert make_job("m", dtype="bf16").subjects == ("torch-cpu-f32", "torch-compile@bf16", "official@bf16")


def test_every_backend_that_can_run_is_a_default_and_the_others_say_why_not(here: Here) -> None:
    lost = registry.Backend("lost", "another package's", "nowhere:nothing", requires=("no_such_package",))
    asks = registry.Backend("asks", "another package's", "nowhere:nothing", argument="FILE")
    found = replace(lost, name="found", requires=())
    here("official", more=(lost, asks, found))
    assert make_job("m").subjects == (*module.SUBJECTS, "official", "found")
    assert left_out() == {
        "torch-cuda-bf16": "not here",
        "llama-cpp": "not here",
        "hf": "not here",
        "lost": "the Python package 'no_such_package' is not installed",
    }


def test_no_engine_is_asked_for_cuda_where_there_is_none(here: Here) -> None:
    here("official")
    with pytest.raises(UsageError, match="no default backend runs here with device cuda"):
        make_job("m", device="cuda")


def test_cuda_subjects_join_where_cuda_can_be_used(here: Here) -> None:
    here("torch-cuda-bf16")
    assert make_job("m").subjects[-2:] == ("torch-cuda-bf16", "torch-compile@cuda,bf16")
    assert make_job("m", device="cuda").subjects == ("torch-cuda-bf16", "torch-compile@cuda,bf16")


def test_the_reference_is_no_candidate() -> None:
    with pytest.raises(UsageError, match="torch-cpu-f32 is the reference"):
        make_job("m", ("torch-cpu-f32",), reference="torch-cpu-f32")


@pytest.mark.parametrize("name", ["honest@f32", "honest@f16"])
def test_a_candidate_does_not_take_the_name_of_the_honest_runs(name: str) -> None:
    with pytest.raises(UsageError, match="write honest:SEED"):
        make_job("m", (name,))
    assert make_job("m", ("honest:0@f32", "honest")).subjects == ("honest:0@f32", "honest")


def test_what_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    row = registry.Backend("lost", "for tests", "nowhere:nothing", requires=("no_such_package",))
    monkeypatch.setattr(registry, "_TABLE", (*registry._TABLE, row))
    registry.table.cache_clear()
    try:
        job = make_job("m", ("lost", "torch-cpu-f32"))
        assert unavailable(job) == {"lost": "the Python package 'no_such_package' is not installed"}
    finally:
        registry.table.cache_clear()
