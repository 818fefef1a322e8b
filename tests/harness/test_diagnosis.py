"""What is said of an examination."""

from dataclasses import replace

from harness.diagnosis import Diagnosis, listed, what, where
from harness.replay import Out
from tests.harness.patients import lineup


def test_the_rival_is_none_of_the_pairs_of_the_cause() -> None:
    line = lineup(1000.0, ("w-v6", 1.0), ("w-v6+w-log", 1.1), ("y-scaled", 50.0))
    found = Diagnosis("f32", cause=("w-v6",), by="logits", lineup=line)
    assert found.next_best == ("y-scaled", 50.0)
    assert found.data()["next"] == {"cause": "y-scaled", "times": 50.0}
    assert "down to the rounding floor; the next best, `y-scaled`, is 50 times farther" in what(found)
    alone = Diagnosis("f32", cause=("w-v6",), by="logits", lineup=lineup(1000.0, ("w-v6", 20.0)))
    assert "the logits come 50 times nearer" in what(alone)
    assert alone.data()["next"] is None


def test_the_nearest_is_named_where_none_explains() -> None:
    found = Diagnosis("f32", lineup=lineup(100.0, ("g-tanh", 20.0), ("w-v6", 99.0)))
    assert "the nearest is `g-tanh`, which comes 5 times nearer than the truth" in what(found)


def test_sentences_of_a_partial_trace() -> None:
    first = Out("blocks.1.att.y", 3, 50.0, 60.0)
    found = Diagnosis("f32", first=first, gap=("blocks.1.att.state",), lacking=tuple("abcdef"), hints=("y is late.",))
    assert "(blocks.1.att.state lies between it and what was recorded, and may be it too)" in where(found)
    assert "explains it, but: y is late; compare with att.y" in what(found)
    assert what(found).endswith("record a, b, c, d and 2 more too.")
    free = replace(found, replayed=False)
    assert "`att.y` is the first recorded tensor that is away from its expected value" in where(free)
    assert where(free).endswith("): its error is 50 times that of honest f32 rounding.")
    assert what(free).startswith("What it reads was as expected")
    outside = replace(found, first=Out("head", 3, float("inf"), 60.0), gap=())
    assert where(outside).startswith("Token 3: `head` is the first recorded tensor that is wrong by itself: it is not")


def test_sentences_without_logits() -> None:
    assert where(Diagnosis("f32")) == "Nothing could be examined: there are neither logits nor named tensors."
    right = Diagnosis("bf16", traced=7, untested=2, lacking=("blocks.0.att.w",))
    assert where(right) == "All 7 recorded tensors follow from what they read, within honest bf16 rounding."
    assert what(right) == "2 tensors were not tested: record blocks.0.att.w."
    assert listed(("a",)) == "a"
