import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import markdown
from reports.document import table
from reports.text import Span, code, rich
from tests.reports.sample import HOSTILE


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("*x* _y_ `z` [l](u) ~s~ $m$", r"\*x\* \_y\_ \`z\` \[l\](u) \~s\~ \$m\$"),
        ("rms_error", "rms_error"),
        ("# heading", "&#35; heading"),
        ("- item", "&#45; item"),
        ("-1.20", "-1.20"),
        ("7.5585", "7.5585"),
        ("1. item", "&#49;. item"),
        ("---", "&#45;--"),
    ],
)
def test_escape(raw: str, escaped: str) -> None:
    assert markdown.escape(raw) == escaped


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("", ""),
        ("def", "`def`"),
        (" fib", "` fib`"),
        ("\\n    ", "`\\n    `"),
        (" a ", "<code>&#32;a&#32;</code>"),
        ("a|b", "<code>a&#124;b</code>"),
        ("`", "<code>&#96;</code>"),
    ],
)
def test_code(raw: str, shown: str) -> None:
    assert markdown.code(raw) == shown


def test_styles() -> None:
    assert markdown.inline(
        rich(Span(" fail ", "fail"), Span("x", "strong"), Span("y", "moved"), Span(" ", "strong"))
    ) == (" **fail** **x***y* ")


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_table_keeps_its_columns_whatever_is_in_it(rows: list[list[str]]) -> None:
    block = table([HOSTILE, "b"], [[row[0], code(row[1])] for row in rows], "c")
    lines = markdown.table(block).split("\n")
    assert len(lines) == len(rows) + 2
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
        assert "<script" not in line


@given(st.text(alphabet="`a\n"))
def test_fence_cannot_be_closed_from_within(text: str) -> None:
    assert markdown.fence(text) not in text
    assert len(markdown.fence(text)) >= 3
