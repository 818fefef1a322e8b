"""Jobs: what is typed becomes plain, frozen data with a key."""

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from backends import registry
from backends.errors import UsageError
from harness import job as module
from harness.job import Job, make_job, unavailable


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


def test_dtype_and_device_narrow_the_defaults() -> None:
    assert make_job("m", dtype="bf16").subjects == ("torch-cpu-f32", "torch-compile@bf16")
    assert make_job("m", dtype="f32").subjects == ("torch-cpu-f32", "torch-compile")


def test_cuda_subjects_join_where_cuda_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(registry.table()["torch-cuda-bf16"], probe=lambda: "")
    monkeypatch.setattr(module, "table", lambda: {**registry.table(), row.name: row})
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
