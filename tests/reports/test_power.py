"""The section on the power of the gate, and its line in the header."""

from dataclasses import replace
from typing import Any

import pytest

from reports import header, power, render
from reports.record import Observation, Record
from tests.reports import sample


def row(name: str, strict: Any, role: str = "fault", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "tensor": "att.w",
        "failed": {"strict": strict, "seed": {}},
        "first": "",
        **more,
    }


def rates(killed: int, alarms: int) -> dict[str, Any]:
    return {
        "faults": 3, "killed": killed, "equivalents": 1, "honest_runs": 2, "false_alarms": alarms,
        "localised": killed and 1, "replayed": killed and 1,
    }  # fmt: skip


FOUND: dict[str, Any] = {
    "profile": "strict",
    "suites": ["logits", "layers"],
    **rates(2, 1),
    "survivors": ["w-no-tanh@bf16"],
    "alarms": ["seed 2@bf16"],
    "cannot_matter": ["kk-norm-over-c"],
    "dtypes": {"bf16": rates(2, 1)},
    "beside": {"seed": {"bf16": rates(0, 0)}},
    "summaries": {"w-v6": "the decay of v6"},
    "rows": {
        "bf16": [
            row("w-v6", {"layers.worst_ratio": "inf", "logits.rms": 12.5}, first="blocks.0.att.w"),
            row("sampler-stale", {"generation.unexplained": None}),
            row("w-scale", {"logits.rms": 4.0}),
            row("w-no-tanh", {}),
            row("kk-norm-over-c", {}),
            row("w-softplus", {}, "equivalent"),
        ]
    },
}
RECORD = replace(sample.record(), observations=(*sample.record().observations, Observation("", "", "", "power", FOUND)))
LINE = "planted faults killed: 2 of 3 at bf16; 1 false alarm in 3 equivalents and honest runs"


def section(record: Record) -> str:
    text = render.markdown(record)
    return text.partition("## Power of this gate\n")[2].partition("\n## ")[0]


def test_the_header_tells_it_in_a_line() -> None:
    assert power.line(RECORD) == LINE
    assert ("This gate", LINE) in [(name, "".join(s.text for s in text)) for name, text in header.facts(RECORD)]


def test_without_a_measurement_nothing_is_said() -> None:
    assert power.line(sample.record()) == ""
    assert power.power(sample.record()) == ()
    assert "This gate" not in dict(header.facts(sample.record()))
    assert "Power of this gate" not in render.markdown(sample.record())


@pytest.mark.parametrize(
    "told",
    [
        "| `strict` | BF16 | 2 of 3 | **1 of 3** | 1 of 1 |",
        "| `seed` | BF16 | 0 of 3 | 0 of 3 | — |",
        "**Survivors:** w-no-tanh@bf16.",
        "**False alarms:** seed 2@bf16.",
        "kk-norm-over-c.",
        "Kill table at bf16: 5 faults",
        "| `w-v6` | the decay of v6 | `att.w` | `layers.worst_ratio` and 1 more | ∞ x | `blocks.0.att.w` |",
    ],
)
def test_the_section_has_rates_and_names(told: str) -> None:
    assert told in section(RECORD).replace("\\_", "_").replace("\\@", "@")


def test_the_least_clearly_killed_stand_first() -> None:
    text = section(RECORD).partition("Kill table")[2]
    order = ["w-no-tanh", "kk-norm-over-c", "w-scale", "w-v6", "sampler-stale"]
    assert sorted(order, key=lambda name: text.index(f"`{name}`")) == order
    assert "w-softplus" not in text


def test_the_matrix_has_no_column_for_it() -> None:
    assert header.matrix(RECORD).columns == header.matrix(sample.record()).columns


def test_html() -> None:
    page = render.html(RECORD)
    assert 'id="power-of-this-gate"' in page
    assert "survives" in page
