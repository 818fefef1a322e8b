"""Line-ups: what is clear, how far two outputs lie apart, who can be suspected."""

import numpy as np
import pytest

from backends.base import Session
from backends.errors import BackendError
from harness import suspects
from harness.diagnose import Clinic
from harness.suspects import Feed, distance, finite_prefix
from tests.harness.patients import lineup

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_lineup_explains_only_what_is_clear() -> None:
    assert lineup(100.0, ("w-v6", 2.0), ("w-log", 90.0)).explained
    assert not lineup(100.0, ("w-v6", 6.0), ("w-log", 90.0)).explained
    assert lineup(1000.0, ("w-v6", 6.0), ("w-log", 90.0)).explained
    assert not lineup(1000.0, ("w-v6", 6.0), ("w-log", 9.0)).explained
    assert not lineup(1.5, ("w-v6", 0.1)).explained
    assert not lineup(100.0).explained
    assert lineup(100.0).nearer == lineup(100.0).margin == 0.0
    assert lineup(float("nan")).astray
    assert lineup(100.0, ("w-v6", 0.0)).nearer == lineup(100.0, ("w-v6", 2.0)).margin == float("inf")


def test_distances_look_at_what_both_have() -> None:
    logits = np.arange(12.0).reshape(1, 3, 4)
    assert distance(logits + 1, logits) == 1.0
    assert distance(logits[:, -1:] + 2, logits) == 2.0
    assert distance(logits[..., :2], logits) == float("inf")
    broken = logits + 1
    broken[0, 1] = np.nan
    assert finite_prefix(broken) == 1
    assert distance(broken, logits) == 1.0
    broken[0, 0, 0] = np.inf
    assert distance(broken, logits) == float("inf")
    assert distance(logits, broken) == float("inf")


def test_a_feed_knows_which_faults_can_show() -> None:
    one, two = Feed(np.zeros((1, 4), int), 0), Feed(np.zeros((2, 4), int), 2)
    assert [one.covers(kind) for kind in ("equation", "carry", "batch", "tokenizer")] == [True, False, False, False]
    assert [two.covers(kind) for kind in ("equation", "carry", "batch", "sampler")] == [True, True, True, False]


def test_faults_that_cannot_be_opened_are_left_out(clinic: Clinic) -> None:
    def opened(name: str) -> Session:
        if name.startswith("fault:") and name != "fault:bonus-missing@f32":
            raise BackendError("not for this version")
        return clinic.opened(name)

    few = suspects.Suspects(opened, clinic.truth, Feed(clinic.tokens[None], 0))
    line = few.line_up(few.truth + 1, "f64")
    assert [suspect.names for suspect in line.suspects] == [("bonus-missing",)]
