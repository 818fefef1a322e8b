import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports import render
from reports.record import Observation, Outcome, Record, Subject, Verdict
from tests.reports import sample
from tests.reports.golden import FOLDER, agrees
from tests.reports.sample import BF16, F32, REF

SEED = (
    *("Environment", "Model", "Tokenization", "Top-10 Predictions", "Aggregate Statistics", "Acceptance Criteria"),
    *("Autoregressive Generation", "Analysis", "How to reproduce"),
)
ALL = (sample.record(), sample.failing(), sample.empty(), sample.hostile())


class Page(HTMLParser):
    """What a browser would see: that tags close in order, which there are, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "path", "circle", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.+)$", text, flags=re.MULTILINE)


def test_the_markdown_is_the_golden_one() -> None:
    agrees(FOLDER / "report.md", render.markdown(sample.record()))


def test_no_golden_is_an_orphan() -> None:
    assert [path.name for path in FOLDER.iterdir()] == ["report.md"]


def test_sections_of_the_seed_come_first_and_never_vanish() -> None:
    for record in ALL:
        assert headings(render.markdown(record))[:9] == list(SEED)
        assert re.findall(r"<h2>(.+?)</h2>", render.html(record))[:9] == list(SEED)
    full = headings(render.markdown(sample.record()))
    assert full[9:] == ["Distribution", "Stepwise drift", "Consistency", "State", "Speed", "All other numbers"]


def test_a_section_without_data_says_so() -> None:
    text = render.markdown(sample.empty())
    assert headings(text) == list(SEED)
    assert text.count("Not run") == 8
    assert "Nothing judged" in text


@pytest.mark.parametrize("record", ALL[:3])
def test_no_section_is_lost_to_an_error(record: Record) -> None:
    assert "Not drawn" not in render.markdown(record)


def test_the_published_numbers_and_the_swap() -> None:
    text = render.markdown(sample.record())
    for line in (
        "| 9 | `x` | 121 | 3.5133 | 3.5133 | 3.4844 *rank 10* | 5.7e-06% | 0.82% |",
        "| 10 | `def` | 7334 | 3.4919 | 3.4919 | 3.5312 *rank 9* | 5.7e-06% | 1.13% |",
        "| Top-1 logit diff from ref | — | 2.00e-07 | 0.0273 |",
        "| Top-10 ID match | — | 10/10 | 10/10 (other order at 9–10) |",
        "| 1 | ` fib` | 21676 |",
        "All 3 produce identical tokenization (7 tokens, no BOS).",
        "| Architecture | RWKV-7 (Goose) |",
    ):
        assert line in text


def test_failures_come_first_and_say_what_to_do() -> None:
    text = render.markdown(sample.failing())
    top = text[: text.index("## Environment")]
    assert "**Broken: 8 of 12 verdicts passed, 1 broke, 1 unsupported, 1 subject dead.**" in top
    assert top.index("strict/state.finite") < top.index("strict/logits.rms_error")
    assert "Case: prose; also code and zh" in top
    assert "Measured: NaN" in top
    assert "no matter of the number format" in top
    assert "Run the same subject in f32 first" in top
    assert "4 fail" in top


@pytest.mark.parametrize(
    ("outcomes", "status", "line"),
    [
        ((Outcome.PASS,), "complete", "Passed: 1 of 1 verdict."),
        ((Outcome.PASS, Outcome.FAIL), "complete", "Failed: 1 of 2 verdicts."),
        ((Outcome.UNSUPPORTED,), "complete", "Nothing judged: no criterion"),
        ((Outcome.PASS,), "crashed", "Broken: 1 of 1 verdict passed; the run is crashed"),
        ((Outcome.PASS,), "interrupted", "Passed: 1 of 1 verdict; the run is interrupted"),
    ],
)
def test_the_verdict_line(outcomes: tuple[Outcome, ...], status: str, line: str) -> None:
    rows = tuple(Verdict("s", "c", "x", "k", outcome) for outcome in outcomes)
    text = render.markdown(replace(sample.empty(), verdicts=rows, status=status))
    assert f"**{line}" in text


@pytest.mark.parametrize("record", ALL)
def test_the_page_is_well_formed_and_self_contained(record: Record) -> None:
    page = Page(render.html(record))
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "a1"}
    assert not [value for name, value in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert all(link and link.startswith("#") for link in links)
    ids = {value for name, value in page.attributes if name == "id"}
    assert {link[1:] for link in links if link} <= ids


def test_untrusted_text_is_shown_and_does_not_act() -> None:
    record = sample.hostile()
    html, text = render.html(record), render.markdown(record)
    assert "<script" not in html
    assert "<script>alert(1)</script>|`x`" in Page(html).words
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside
    assert not re.search(r"^# heading", outside, flags=re.MULTILINE)
    for shown in (html, text):
        shown.encode("utf-8")
        assert "\u202e" not in shown
        assert "\x1b" not in shown
    assert "שלום" in text
    assert "\U0001f600" in html


def test_every_markdown_table_is_rectangular() -> None:
    for record in ALL:
        width = 0
        for line in render.markdown(record).split("\n"):
            cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("| ") else 0
            assert not width or cells in (0, width), line
            width = cells


def test_plots_are_accessible() -> None:
    html = render.html(sample.record())
    drawn = html.count("<svg")
    assert drawn == 9
    assert html.count('role="img"') == html.count("<desc>") == drawn
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def contrast(one: str, two: str) -> float:
    """WCAG 2 contrast of two #rrggbb colours."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(two)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_in_both_modes() -> None:
    style = (render.TEMPLATES / "style.css.jinja").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w]+): (#\w{6})", part)) for part in style.split("@media screen")[:2])
    for mode in (light, dark):
        for name in ("ink", "soft", "link", "pass", "fail", "error", "other"):
            for ground in ("paper", "raised"):
                assert contrast(mode[name], mode[ground]) >= 4.5, (name, ground)
        for name in ("s1", "s2", "s3", "s4", "s5", "s6", "honest"):
            assert contrast(mode[name], mode["paper"]) >= 3, name


def test_damaged_evidence_costs_one_section() -> None:
    base = sample.record()
    bad = Observation("logits", "code", F32, "topk", {"rows": [{"id": 1}]})
    worse = Observation("speed", "x", F32, "samples", {"what": "prefill"})
    text = render.markdown(replace(base, observations=(*base.observations, bad, worse)))
    assert text.count("Not drawn:") >= 2
    assert "missing 'median'" in text
    assert "## Consistency\n\nCase" in text


def test_tokenizations_that_differ_stand_side_by_side() -> None:
    base = sample.record()
    other = {"prompt": "x", "ids": [0, 7], "pieces": ["", "d"]}
    seen = tuple(
        replace(o, data=other) if (o.kind, o.subject) == ("tokens", BF16) else o
        for o in base.observations
        if o.kind == "tokens"
    )
    text = render.markdown(replace(base, observations=seen))
    assert (
        "**The tokenizations differ** (reference-f64 and torch-cpu-f32: 7 tokens; torch-compile@bf16: 2 tokens)" in text
    )
    assert "| 6 | `\\n    ` | 28352 | — | — |" in text


def test_further_cases_are_folded() -> None:
    base = sample.record()
    more = tuple(replace(o, case="code") for o in base.observations if o.suite == "logits")
    text = render.markdown(replace(base, observations=(*base.observations, *more)))
    assert "Case `fibonacci`; 1 more of suite logits below, folded." in text
    assert "<details><summary>Case `code`</summary>" in text
    assert text.count("<details>") == text.count("</details>")


def test_sparse_facts_are_enough() -> None:
    record = replace(
        sample.empty(),
        environment={"python": "3.12", "dirty": False, "memory_gib": 4, "nothing": None},
        model={"name": "m", "version": "6"},
        subjects=(Subject(REF, "reference", {"dtype": "f64"}), Subject("x", "candidate")),
        verdicts=(Verdict("s", "", "ghost", "k", Outcome.SKIPPED, detail="asked for"),),
    )
    text = render.markdown(record)
    assert "| Compute dtype | F64 | — |" in text
    assert "| Architecture | RWKV-6 (Finch) |" in text
    assert "| `ghost` | 1 skipped |" in text
    assert "RWKV-6 forward pass: x against reference-f64" in text


def test_nan_is_shown_in_every_place() -> None:
    record = sample.hostile()
    assert "NaN" in render.markdown(record)
    assert "not finite" in render.html(record)


def test_rendering_is_fast_and_loads_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(sample.record().to_json(), encoding="utf-8")
    code = (
        "import sys, pathlib, json; from reports import output, store\n"
        "assert 'pandas' not in sys.modules and 'jinja2' not in sys.modules\n"
        "output.write(store.load(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    start = time.monotonic()
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "out"], capture_output=True, text=True, check=True, cwd=root
    )
    assert time.monotonic() - start < 20  # 1 s on a quiet machine; the loose limit is for a busy one
    assert not {"torch", "matplotlib", "harness", "backends"} & set(json.loads(done.stdout))


def test_a_state_that_grows_is_called_so() -> None:
    data = {"bytes": 10, "shapes": {}, "positions": [], "bytes_at": [10, 20], "rms": []}
    grown = replace(sample.record(), observations=(Observation("state", "c", F32, "state", data),))
    assert "| `torch-cpu-f32` | 10 B | **no: 10 B to 20 B** |  | — |" in render.markdown(grown)


def test_ratios_and_latency_alone_are_a_speed_section() -> None:
    kept = tuple(o for o in sample.record().observations if o.kind == "ratio")
    text = render.markdown(replace(sample.record(), observations=kept))
    assert "| 1.630 × | 1.580–1.690 | faster |" in text
    assert "| Samples |" not in text


def test_an_error_that_is_not_a_number_is_the_worst() -> None:
    series = {"step": [0, 1, 2], "rms": [1e-3, "nan", 1e-2], "max": [1.0, 1.0, 1.0], "bias": [], "state": []}
    seen = (Observation("stepwise", "c", F32, "series", series),)
    text = render.markdown(replace(sample.record(), observations=seen))
    assert "| `torch-cpu-f32` | 3 | 0.00100 | 0.0100 | NaN | 1 | — | — |" in text


def test_generation_without_a_reference() -> None:
    kept = tuple(o for o in sample.record().observations if o.suite == "generation" and o.subject == REF)
    assert "20 tokens:" in render.markdown(replace(sample.record(), observations=kept))


def test_a_suite_without_a_section_is_shown_in_full() -> None:
    text = render.markdown(sample.record())
    end = text[text.index("## All other numbers") :]
    assert end.index("| fibonacci | deviation | 6.996e-06 |") < end.index("<details>")
    assert "<details><summary>Suite `speed`</summary>" in end
    assert "| decode-64 | rate (tokens/s) | 88 |" in end


def test_the_top_logit_is_compared_wherever_it_landed() -> None:
    base = sample.record()
    rows = [
        {**row, "rank": 12 if row["rank"] == 1 else row["rank"] - 1, "logit": row["logit"]}
        for o in base.observations
        if (o.kind, o.subject) == ("topk", F32)
        for row in o.data["rows"]
    ]
    seen = tuple(o for o in base.observations if (o.kind, o.subject) != ("topk", F32))
    moved = Observation("logits", sample.CASE, F32, "topk", {"k": 10, "position": 6, "rows": rows})
    text = render.markdown(replace(base, observations=(*seen, moved)))
    assert "| Top-1 logit diff from ref | — | 2.00e-07 |" in text
    assert "| Top-5 ID match | — | 4/5 (other order at 1–5) |" in text
