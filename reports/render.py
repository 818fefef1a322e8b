"""Record -> Document -> markdown and HTML. The document is built in Python; templates only lay it out."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports import diagnosis, extras, header, layers, power, predictions, sections, speed
from reports.document import Blocks, Document, Section
from reports.markdown import FILTERS
from reports.record import Record

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
"""The sibling folder of this package, in a checkout and in an installed wheel alike."""

SECTIONS: tuple[tuple[str, tuple[Callable[[Record], Blocks], ...]], ...] = (
    ("Environment", (sections.environment,)),
    ("Model", (sections.model,)),
    ("Tokenization", (sections.tokenization,)),
    ("Top-10 Predictions", (predictions.predictions,)),
    ("Aggregate Statistics", (predictions.aggregate, extras.logit_error)),
    ("Acceptance Criteria", (sections.criteria,)),
    ("Autoregressive Generation", (sections.generation,)),
    ("Analysis", (sections.analysed,)),
    ("How to reproduce", (sections.reproduce,)),
    ("Distribution", (extras.distribution,)),
    ("Stepwise drift", (extras.stepwise,)),
    ("Consistency", (extras.consistency,)),
    ("State", (extras.state,)),
    ("In use", (extras.use,)),
    ("Diagnosis", (diagnosis.diagnosis,)),
    ("Layers", (layers.layers,)),
    ("Power of this gate", (power.power,)),
    ("Speed", (speed.speed,)),
    ("All other numbers", (extras.measurements,)),
)
"""Title and builders of every section, in order. A new section is one function and one row."""


def document(record: Record) -> Document:
    """The report as data; sections without a block are left out."""
    drawn = [
        Section(title, tuple(b for build in builders for b in _draw(build, record))) for title, builders in SECTIONS
    ]
    return Document(
        title=header.title(record),
        outcome=header.outcome(record),
        verdict=header.verdict(record),
        counts=tuple(record.counts().items()),
        facts=header.facts(record),
        opening=_draw(header.opening, record),
        sections=tuple(section for section in drawn if section.blocks),
    )


def _draw(build: Callable[[Record], Blocks], record: Record) -> Blocks:
    """The blocks of one builder; evidence of a shape that it cannot read costs this section only."""
    try:
        return build(record)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"missing {error}" if isinstance(error, KeyError) else str(error)
        return extras.note(f"the record's evidence for this section has another shape than expected ({what}).")


def markdown(record: Record) -> str:
    """The report as GitHub-flavoured markdown."""
    return _environment().get_template("report.md.jinja").render(doc=document(record)).strip() + "\n"


def html(record: Record) -> str:
    """The report as one self-contained HTML page: no script, nothing fetched."""
    return _environment().get_template("report.html.jinja").render(doc=document(record))


def render(template: str, **values: Any) -> str:
    """Another template of the folder."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> "jinja2.Environment":
    """Undefined names are errors; HTML is escaped by jinja, markdown by the filters of `reports.markdown`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(("html.jinja",)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return environment
