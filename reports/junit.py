"""JUnit XML: one test case a verdict, so that any CI shows the run."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import groupby

from reports.record import Outcome, Record, Verdict
from reports.text import num, visible

_TAGS = {
    Outcome.FAIL: "failure",
    Outcome.ERROR: "error",
    Outcome.SKIPPED: "skipped",
    Outcome.UNSUPPORTED: "skipped",
}


def junit(record: Record) -> str:
    """The verdicts as JUnit XML, a suite for each subject and suite.

    *Unsupported* and *skipped* become skipped cases with their reason; a subject that broke, a run that did
    not finish and a run in which nothing was judged become errors, since an empty suite counts as green.
    """
    root = ET.Element("testsuites", name="rwkv-harness")
    for (subject, suite), rows in groupby(sorted(record.verdicts, key=_key), key=_key):
        root.append(_suite(record, f"{suite}.{subject}", [_case(verdict) for verdict in rows]))
    broken = _run_errors(record)
    if broken:
        root.append(_suite(record, "run", broken))
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root, " ")
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(
        ('<?xml version="1.0" encoding="UTF-8"?>\n', "\n")
    )


def _key(verdict: Verdict) -> tuple[str, str]:
    return verdict.subject, verdict.suite


def _suite(record: Record, name: str, cases: Sequence[ET.Element]) -> ET.Element:
    suite = ET.Element("testsuite", name=visible(name), tests=str(len(cases)), timestamp=visible(record.created))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    properties = ET.SubElement(suite, "properties")
    facts = {"run": record.id, "model": record.model.get("name"), "commit": record.environment.get("commit")}
    for key, value in facts.items():
        if value:
            ET.SubElement(properties, "property", name=key, value=visible(str(value)))
    suite.extend(cases)
    return suite


def _case(verdict: Verdict) -> ET.Element:
    """One verdict."""
    name = f"{verdict.criterion} [{verdict.case}]" if verdict.case else verdict.criterion
    case = ET.Element("testcase", classname=visible(f"{verdict.suite}.{verdict.subject}"), name=visible(name))
    tag = _TAGS.get(verdict.outcome)
    if tag:
        _explain(case, tag, verdict)
    return case


def _explain(case: ET.Element, tag: str, verdict: Verdict) -> None:
    """The failure, error or reason to skip."""
    measured = f"measured {num(verdict.value, 6)}, allowed {verdict.limit}" if verdict.limit else ""
    short = "; ".join(part for part in (measured, verdict.detail) if part)
    element = ET.SubElement(case, tag, message=visible(short or verdict.outcome.value))
    if tag != "skipped":
        element.set("type", verdict.outcome.value)
    element.text = visible("\n".join(part for part in (short, verdict.why) if part), keep="\n")


def _run_errors(record: Record) -> list[ET.Element]:
    """What no verdict says, as errors."""
    wrong = [(f"open {subject.id}", subject.error) for subject in record.subjects if subject.error]
    if record.status != "complete":
        wrong.append(("finish", f"the run is {record.status}"))
    counts = record.counts()
    if not any(counts[name] for name in ("pass", "fail", "error")):
        wrong.append(("judge", "nothing was judged"))
    cases = []
    for name, message in wrong:
        case = ET.Element("testcase", classname="run", name=visible(name))
        ET.SubElement(case, "error", message=visible(message), type="error")
        cases.append(case)
    return cases
