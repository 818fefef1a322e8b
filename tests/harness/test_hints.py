from typing import Any

import numpy as np
import pytest

from backends.base import Array
from harness.hints import Seen, hints, in_layers

T, H, N = 20, 4, 8
RNG = np.random.default_rng(3)
WANT = RNG.standard_normal((T, H * N))
STATE = RNG.standard_normal((T, H, N, N))
OTHER = RNG.standard_normal((T, H * N))


def seen(got: Array, want: Array = WANT, **more: Any) -> Seen:
    facts: dict[str, Any] = {
        "name": "blocks.1.att.k",
        "truth": RNG.standard_normal(want.shape),
        "siblings": {},
        "misread": {},
        "allowed": np.full(T, 1e-3),
        "heads": H,
        "edge": 10,
    }
    return Seen(got=got + 1e-4 * RNG.standard_normal(got.shape), want=want, **(facts | more))


def first(got: Array, want: Array = WANT, **more: Any) -> str:
    found = hints(seen(got, want, **more))
    return found[0] if found else ""


def only_at(tokens: Any) -> Array:
    got = WANT.copy()
    got[tokens] += 0.5 * RNG.standard_normal(got[tokens].shape)
    return got


SPLIT = WANT.reshape(T, H, N)


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (-WANT, "wrong sign"),
        (2 * WANT, "times what it should be"),
        (WANT / 8, "k is 0.12"),
        (WANT + OTHER[:1], "same vector at every token"),
        (SPLIT[:, [1, 0, 3, 2]].reshape(T, -1), "in the order 1, 0, 3, 2"),
        (SPLIT.swapaxes(1, 2).reshape(T, -1), "interleaved"),
        (WANT.reshape(T, N, H).swapaxes(1, 2).reshape(T, -1), "interleaved"),
        (np.concatenate([0 * WANT[:1], WANT[:-1]]), "one token late"),
        (np.concatenate([WANT[1:], WANT[-1:]]), "one token early"),
        (only_at([0]), "Only the first token is wrong"),
        (only_at([10]), "Only token 10, the first of the second call"),
        (only_at(slice(10, None)), "right up to token 10"),
    ],
)
def test_a_known_slip_is_recognised(got: Array, words: str) -> None:
    assert words in first(got)


@pytest.mark.parametrize("stands_on", ["want", "truth"])
def test_a_transposed_state_is_recognised_against_expectation_and_truth(stands_on: str) -> None:
    more = {"truth": STATE} if stands_on == "truth" else {}
    want = STATE if stands_on == "want" else RNG.standard_normal(STATE.shape)
    assert first(STATE.swapaxes(-1, -2), want, name="blocks.0.att.state", **more).startswith("state is transposed")


def test_heads_of_a_state_in_another_order() -> None:
    assert "in the order 3, 2, 1, 0" in first(STATE[:, ::-1], STATE, name="blocks.0.att.state")


def test_another_tensor_in_its_place_and_a_misread_equation() -> None:
    assert "k holds what v should hold" in first(OTHER, siblings={"v": OTHER, "short": OTHER[:, :4]})
    assert first(OTHER, misread={"w0 is left out": OTHER}) == "k is what its equation gives if w0 is left out."


def test_the_nearest_explanation_wins() -> None:
    near = {"almost": WANT + (OTHER - WANT) * 0.995, "exactly": OTHER}
    found = hints(seen(OTHER, misread=near, allowed=np.full(T, 1e-3)))
    assert [hint for hint in found if "exactly" in hint]
    assert not [hint for hint in found if "almost" in hint]


def test_few_channels_or_one_head_are_named() -> None:
    got = WANT.copy()
    got[:, 13] = 0
    assert hints(seen(got)) == ["Only channel 13 of k is wrong: a row of a weight?"]
    got = WANT.copy()
    got[:, 2 * N : 3 * N] = RNG.standard_normal((T, N))
    assert hints(seen(got)) == ["Only head 2 of k is wrong."]
    assert hints(seen(got, name="blocks.1.ffn.k")) == []  # no heads there
    assert hints(seen(got, heads=1)) == []


def test_nothing_is_said_of_what_nothing_explains() -> None:
    assert hints(seen(RNG.standard_normal(WANT.shape))) == []


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_is_said_and_nothing_else(broken: float) -> None:
    got = WANT.copy()
    got[7, 3] = broken
    assert hints(seen(got)) == ["k is not finite from token 7 on: look for an overflow or a division by zero there."]


def test_a_single_token_has_no_edges() -> None:
    found = hints(seen(OTHER[:1], WANT[:1], truth=WANT[:1], allowed=np.full(1, 1e-3), edge=0))
    assert not [hint for hint in found if "carried over" in hint]


@pytest.mark.parametrize(
    ("layers", "total", "words"),
    [
        ([0], 3, "Only layer 0 has att.w wrong; the other layers have it right."),
        ([1, 2], 3, "Every layer but the first has att.w wrong."),
        ([2], 4, "Only layer 2 has att.w wrong."),
        ([0, 3], 4, "Only layers 0, 3 have att.w wrong."),
        ([1, 2, 3, 5, 7], 9, "Only layers 1, 2, 3, 5 and 1 more have att.w wrong."),
        ([0, 1, 2], 3, ""),
        ([0], 1, ""),
        ([], 3, ""),
    ],
)
def test_layers_that_have_it_wrong(layers: list[int], total: int, words: str) -> None:
    assert in_layers(layers, total, "att.w") == words
