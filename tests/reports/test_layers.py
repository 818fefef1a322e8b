import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from reports import layers, render
from reports.document import Figure, Fold
from reports.record import Observation, Record
from tests.reports import sample

NS = "{http://www.w3.org/2000/svg}"
NAMES = ("emb", "blocks.0.att.w", "blocks.0.att.v", "blocks.1.att.w", "blocks.1.att.v_lora", "blocks.1.att.v", "head")


def evidence(**ratios: float | str | None) -> dict[str, Any]:
    """All inside at 0.5, but what is named: dots are double underscores."""
    worst = {name: ratios.get(name.replace(".", "__"), 0.5) for name in NAMES}
    out = [name for name, ratio in worst.items() if ratio is not None and not float(ratio) <= 3]
    first = {"tensor": out[0], "token": 7, "ratio": 333.0, "worst": worst[out[0]], "spanned": []} if out else None
    if first:
        first["layer"] = int(out[0].split(".")[1]) if out[0].startswith("blocks") else None
    return {
        "tensors": list(NAMES),
        "worst": list(worst.values()),
        "first_token": [7 if name in out else None for name in NAMES],
        "inherited": [1.0] * len(NAMES),
        "untested": [name for name, ratio in worst.items() if ratio is None],
        "limit": 3.0,
        "first": first,
        "hints": ["w is off by one token."] if out else [],
        "lacking": [],
    }


def record(**subjects: dict[str, Any]) -> Record:
    seen = tuple(Observation("layers", "long", name, "layers", data) for name, data in subjects.items())
    return replace(sample.record(), observations=seen)


def text(found: Record) -> str:
    return render.markdown(found).partition("## Layers")[2].partition("\n## ")[0]


def test_a_wrong_tensor_is_named_with_place_ratio_and_hint() -> None:
    said = text(record(port=evidence(blocks__1__att__w=333.0)))
    assert "`blocks.1.att.w`" in said
    assert "(layer 1, token 7)" in said
    assert "333x" in said
    assert "w is off by one token." in said
    assert "No other tensor adds an error of its own" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"head": 4.0}, "One other tensor adds an error"),
        ({"head": 4.0, "blocks__1__att__v": 9.0}, "2 other tensors add errors of their own"),
    ],
)
def test_the_others_out_of_band_are_counted(more: dict[str, float], words: str) -> None:
    assert words in text(record(port=evidence(blocks__0__att__w=5.0, **more)))


def test_an_infinite_ratio_is_called_not_finite() -> None:
    said = text(record(port=evidence(emb="inf")))
    assert "(token 7)" in said
    assert "not finite at worst" in said


def test_all_inside_names_the_nearest() -> None:
    said = text(record(port=evidence(blocks__0__att__v=1.25)))
    assert "every named tensor is within honest rounding" in said
    assert "`blocks.0.att.v`, at 1.25 of 3 allowed" in said


def test_untested_is_said_and_the_most_useful_name_too() -> None:
    data = {**evidence(head=None, emb=None), "lacking": ["blocks.1.ffn.res", "blocks.0.att.v"]}
    said = text(record(port=data))
    assert "each of the 5 tested tensors" in said
    assert "Untested, which is no pass: 2 tensors (emb and head)." in said
    assert "`blocks.1.ffn.res` would make more of them testable" in said


def test_nothing_tested_is_no_praise() -> None:
    said = text(record(port=evidence(**{name.replace(".", "__"): None for name in NAMES})))
    assert "not one tensor could be tested" in said


def test_a_finding_over_a_gap_names_all_that_lies_in_it() -> None:
    data = evidence(blocks__1__att__w=9.0)
    data["first"]["spanned"] = ["blocks.1.att.w_lora", "blocks.1.att.w_raw"]
    said = text(record(port=data))
    assert "blocks.1.att.w_lora, blocks.1.att.w_raw and blocks.1.att.w" in said
    assert "Record `blocks.1.att.w_raw` too" in said


def test_wrong_subjects_come_first_and_the_others_are_folded() -> None:
    blocks = layers.layers(record(good=evidence(), bad=evidence(head=50.0)))
    figures = [block for block in blocks if isinstance(block, Figure)]
    assert len(figures) == 1
    assert "bad" in figures[0].title
    folded = [inner for block in blocks if isinstance(block, Fold) for inner in block.blocks]
    assert any(isinstance(block, Figure) and "good" in block.title for block in folded)


def test_the_map_has_a_cell_a_tensor_a_ring_and_words() -> None:
    figure = layers.heat_map("<port>", evidence(blocks__1__att__w=333.0, head=None), "long")
    root = ET.fromstring(figure.svg)
    boxes = [node for node in root.iter(f"{NS}rect") if float(node.get("y") or 0) > 20]
    assert len(boxes) == len(NAMES) + 1  # a ring around the first
    assert [node.text for node in root.iter(f"{NS}title")][1:] == ["blocks.1.att.w: 333 x honest, from token 7 on"]
    assert "1 of 7 tensors are out" in figure.summary
    words = [node.text for node in root.iter(f"{NS}text")]
    assert {"untested", "≤ 3", "more", "att.v_lora", "layer", "1"} <= set(words)
    assert words.index("att.w") < words.index("att.v_lora") < words.index("att.v")


def test_the_fill_grows_with_the_error() -> None:
    fills = [layers._fill(worst, 3.0) for worst in (None, 0.5, 2.0, 5.0, 50.0, 5e3, 5e9, math.inf)]
    assert len(set(fills)) == 7  # beyond the last step all are full
    assert fills[0].startswith("fill:none")
    assert layers._fill(math.nan, 3.0) == "fill:var(--fail);fill-opacity:1.0"


def test_deep_models_label_some_layers() -> None:
    names = [f"blocks.{layer}.att.w" for layer in range(61)]
    data = {
        **evidence(),
        "tensors": names,
        **{key: [0.5] * 61 for key in ("worst", "inherited")},
        "first_token": [None] * 61,
    }
    root = ET.fromstring(layers.heat_map("port", data, "long").svg)
    shown = [node.text for node in root.iter(f"{NS}text") if node.text and node.text.isdigit()]
    assert shown[0] == "0"
    assert 5 < len(shown) < 30


def test_no_evidence_no_section() -> None:
    assert layers.layers(sample.empty()) == ()
    assert "## Layers" not in render.markdown(sample.record())
