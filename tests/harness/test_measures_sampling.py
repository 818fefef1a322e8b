"""Suite sampling: right ports pass by what they claim, every misreading of the parameters or the templates fails."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from backends.base import Array, ModelFacts, Session
from backends.checkpoint import open_checkpoint
from backends.errors import BackendError, Unsupported, UsageError
from backends.prompts import render
from backends.reference.session import EquationSession
from backends.sampling import BLANKS_AND_DIGITS, Counts, Params, Sampler, semantics, softmax
from backends.tokenizer import Bytes, open_tokenizer
from backends.weights import Weights
from harness import judge, suite
from harness.job import Job
from harness.ledger import encode
from harness.measures import sampling
from harness.measures.base import Context
from harness.run import run
from reports.record import Outcome
from tests.harness.fakes import registered

CASES = {case.name: case for case in suite.load("sampling").cases}
NUMERIC = [name for name, case in CASES.items() if "template" not in case.options]
FORMS = [name for name, case in CASES.items() if "template" in case.options]
LIMIT = next(c for c in judge.load("strict").criteria if c.suite == "sampling" and c.measure == "distance").bound()[1]


def context(name: str, vocabulary: str = "bytes") -> Context:
    tokenizer = open_tokenizer(vocabulary)
    size = {"bytes": 256, "world": 65536}[vocabulary]
    facts = ModelFacts("m", "7", "", size, 64, 3, 1, 64, 256, 1, tokenizer=vocabulary)
    return Context(CASES[name], encode(CASES[name].text, tokenizer, size), facts, tokenizer)


@dataclass
class Port:
    """A sampler in float32 as a port would write it, with places to go wrong."""

    semantics: str = "official"
    shape: Callable[[Array, Params], Array] | None = None
    counts_prompt: bool | None = None
    exempt: str = BLANKS_AND_DIGITS
    penalise: Callable[[Array, Counts], Array] = lambda logits, counts: counts.penalised(logits)
    parameters: Callable[[Params], Params] = lambda params: params
    dialect: str = ""
    text: Callable[[str], str] = str
    vocabulary: str = "bytes"

    def probabilities(
        self, logits: Array, prompt: Sequence[int], generated: Sequence[int], parameters: Mapping[str, float]
    ) -> Array:
        typed: dict[str, Any] = dict(parameters)
        params = self.parameters(replace(Params(exempt=self.exempt), **typed))
        way = semantics(self.semantics)
        if self.counts_prompt is not None:
            way = replace(way, counts_prompt=self.counts_prompt)
        counts = Counts(way, params, open_tokenizer(self.vocabulary))
        counts.start(prompt)
        for token in generated:
            counts.add(token)
        return (self.shape or way.shape)(self.penalise(logits, counts), params).astype(np.float32)

    def render(self, template: str, prompt: str, system: str, suffix: str) -> list[int]:
        text = render(template, prompt, system, suffix, self.dialect or self.semantics)
        return open_tokenizer(self.vocabulary).encode(self.text(text))


class Sampling(EquationSession):
    def __init__(self, weights: Weights, port: Any) -> None:
        super().__init__(weights, "sampling", "f32")
        self.sampling = port
        self.info = replace(self.info, abilities=self.info.abilities | {"sampler"})


@dataclass
class Only:
    """The part of a session that the measure asks."""

    sampling: Any


def asked(port: Any, around: Context) -> tuple[dict[str, float], dict[str, Any]]:
    truth = sampling.independent(around)
    session: Any = Only(port)
    got = sampling.collect(session, around, None)[0]
    numbers = {number.name: number.value for number in sampling.compare(got, truth, around)}
    ((kind, data),) = sampling.observe(got, truth, around)
    assert kind == "sampling"
    return numbers, data


# ---- right ones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", ["bytes", "world"])
@pytest.mark.parametrize("way", ["official", "candle"])
@pytest.mark.parametrize("name", CASES)
def test_right_ports_are_right(name: str, way: str, vocabulary: str) -> None:
    port = Port(way, vocabulary=vocabulary)
    if way == "candle" and CASES[name].options.get("template", "") in ("think-a-bit", "think-a-lot"):
        with pytest.raises(UsageError, match="no template"):
            asked(port, context(name, vocabulary))
        return
    numbers, data = asked(port, context(name, vocabulary))
    assert numbers.get("ids_differ", 0.0) == 0.0
    assert numbers.get("distance", 0.0) < 1e-6
    assert way in data["follows"]
    assert data["claims"] == way


DIFFER = {"order", "ties", "greedy-ties", "presence", "frequency", "decay", "preset-chat", "preset-creative"}
"""Cases in which the two semantics give different distributions, and no others."""


@pytest.mark.parametrize("name", NUMERIC)
def test_the_two_semantics_differ_exactly_where_the_facts_say(name: str) -> None:
    numbers, data = asked(Port(), context(name))
    assert (numbers["distance_candle"] > 1e-3) == (name in DIFFER), numbers
    assert data["follows"] == (["official"] if name in DIFFER else ["official", "candle"])


def test_the_dialects_differ_in_every_template_but_raw_and_fim() -> None:
    for name in FORMS:
        numbers, _ = asked(Port(), context(name))
        form = CASES[name].options["template"]
        if form in ("think-a-bit", "think-a-lot"):
            assert "ids_differ_candle" not in numbers
        else:
            assert (numbers["ids_differ_candle"] > 0) == (form not in ("raw", "fim"))


@pytest.mark.parametrize("vocabulary", ["bytes", "world"])
@pytest.mark.parametrize("name", NUMERIC)
def test_no_cumulative_sum_is_near_the_cutoff(name: str, vocabulary: str) -> None:
    around = context(name, vocabulary)
    logits, prompt, generated = sampling.given(around)
    params = sampling.parameters(around)
    for way in ("official", "candle"):
        counts = Counts(semantics(way), replace(sampling.OFF, **dict[str, Any](params)), around.tokenizer)
        counts.start(prompt)
        for token in generated:
            counts.add(token)
        penalised = counts.penalised(logits)
        p = softmax(penalised, params["temperature"] if way == "candle" and params["temperature"] else 1.0)
        sums = np.cumsum(np.sort(p)[::-1])
        assert np.abs(sums - params["top_p"]).min() > 1e-4 or params["top_p"] == 1.0


def test_either_form_of_fake_thinking_is_official() -> None:
    around = context("template-fake-think")
    for text in (str, lambda text: text.replace("<think>\n</think", "<think></think")):
        assert asked(Port(text=text), around)[0]["ids_differ"] == 0.0


# ---- wrong ones -----------------------------------------------------------------------------------


def crossing(logits: Array, params: Params) -> Array:
    """Drops the token that crosses top-p."""
    p = softmax(logits)
    falling = np.argsort(-p, kind="stable")
    kept = falling[np.cumsum(p[falling]) <= max(params.top_p, p.max())]
    return powered(p, kept, params)


def powered(p: Array, kept: Array, params: Params) -> Array:
    chosen = np.zeros(p.shape)
    chosen[kept] = (p[kept] / p.max()) ** (1 / (params.temperature or 1.0))
    shares: Array = chosen / chosen.sum()
    return shares


def ties_cut(logits: Array, params: Params) -> Array:
    p = softmax(logits)
    falling = np.argsort(-p, kind="stable")
    top_p = params.top_p if params.temperature else 0.0
    return powered(p, falling[: int((np.cumsum(p[falling]) < top_p).sum()) + 1][: params.top_k or None], params)


def not_normal(logits: Array, params: Params) -> Array:
    p = semantics("official").shape(logits, params)
    return np.where(p > 0, softmax(logits), 0.0)


def repetition(logits: Array, counts: Counts) -> Array:
    seen = list(counts.seen)
    result = logits.astype(np.float64)
    result[seen] = np.where(result[seen] > 0, result[seen] / 1.3, result[seen] * 1.3)
    return result


def without_presence(logits: Array, counts: Counts) -> Array:
    return Counts(counts.way, replace(counts.params, presence=0.0), None, counts.seen).penalised(logits)


def late_decay(logits: Array, counts: Counts) -> Array:
    faded = {token: count * counts.params.decay for token, count in counts.seen.items()}
    return Counts(counts.way, counts.params, None, faded).penalised(logits)


def rounded(logits: Array, counts: Counts) -> Array:
    """Logits held in bfloat16."""
    bits = counts.penalised(logits).astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


WRONG = {
    "temperature first": Port(shape=semantics("candle").shape),
    "the prompt counts": Port(counts_prompt=True),
    "nothing is exempt": Port(exempt=""),
    "blanks only are exempt": Port(exempt=" \t"),
    "the crossing token is dropped": Port(shape=crossing),
    "ties are cut": Port(shape=ties_cut),
    "not normalised": Port(shape=not_normal),
    "penalty multiplies": Port(penalise=repetition),
    "no presence": Port(penalise=without_presence),
    "decay after the count": Port(penalise=late_decay),
    "no decay": Port(parameters=lambda p: replace(p, decay=1.0)),
    "no top-k": Port(parameters=lambda p: replace(p, top_k=0)),
    "one too many": Port(parameters=lambda p: replace(p, top_k=p.top_k + bool(p.top_k))),
    "no temperature": Port(parameters=lambda p: replace(p, temperature=1.0)),
    "bfloat16 logits": Port(penalise=rounded),
    "candle that does not count the prompt": Port("candle", counts_prompt=False),
    "candle with top-p first": Port("candle", shape=semantics("official").shape),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_misreading_fails_clearly(name: str) -> None:
    distances = [asked(WRONG[name], context(case))[0]["distance"] for case in NUMERIC]
    worst = max(distances)
    assert worst > LIMIT
    assert worst > 0.01 or name == "bfloat16 logits"


WRONG_TEXT: dict[str, Callable[[str], str]] = {
    "a blank behind the colon": lambda text: text + " " if text.endswith(":") else text,
    "the model's bracket": lambda text: text + ">" if text.endswith("think") else text,
    "a document begins": lambda text: "\0" + text,
    "short role": lambda text: text.replace("Assistant:", "A:"),
    "one newline": lambda text: text.replace("\n\n", "\n"),
    "the gap's text last": lambda text: text.replace("suffix", "middle"),
}


@pytest.mark.parametrize("name", WRONG_TEXT)
def test_every_other_prompt_fails(name: str) -> None:
    differ = [asked(Port(text=WRONG_TEXT[name]), context(case))[0]["ids_differ"] for case in FORMS]
    assert max(differ) > 0


def test_not_a_number_fails() -> None:
    port = Port(shape=lambda logits, params: np.full(logits.shape, np.nan))
    numbers, data = asked(port, context("plain"))
    assert np.isnan(numbers["distance"])
    assert data["follows"] == ["neither"]


def test_ports_that_break_the_contract() -> None:
    around = context("plain")
    with pytest.raises(BackendError, match=r"probabilities of shape \(3,\), asked for were \(256,\)"):
        asked(Port(shape=lambda logits, params: np.ones(3)), around)
    with pytest.raises(BackendError, match="samples as 'own'; known: official, candle"):
        asked(replace_semantics(Port(), "own"), around)
    with pytest.raises(Unsupported, match="no sampler of its own"):
        asked(None, around)
    with pytest.raises(Unsupported, match="candle has no such template"):
        asked(Port("candle", dialect="official"), context("template-think-a-lot"))


def replace_semantics(port: Port, name: str) -> Port:
    port.semantics = name
    return port


def test_where_names_the_first_difference() -> None:
    around = context("template-chat")
    session: Any = Only(Port(text=lambda text: text + " "))
    got = sampling.collect(session, around, None)[0]
    where = sampling.compare(got, sampling.independent(around), around)[0].where
    assert where == f"token {len(got['ids']) - 1}: [32], not []"


def test_without_a_tokenizer_bytes_stand_for_tokens() -> None:
    around = replace(context("frequency"), tokenizer=None)
    logits, _, generated = sampling.given(around)
    assert generated == list(CASES["frequency"].options["generated"].encode())
    assert logits.shape == (256,)


# ---- through a whole run --------------------------------------------------------------------------


def judged(port: Any, profile: str = "strict") -> dict[str, Outcome]:
    def build(weights: Weights) -> Session:
        return Sampling(weights, port)

    with registered(sampling=build):
        record = run(
            Job("conformance", ("sampling",), suites=("sampling",), profile=profile, threads=1),
            print,
            lambda record: None,
        )
    return {verdict.case: verdict.outcome for verdict in record.verdicts}


def test_the_suite_judges_by_what_is_claimed() -> None:
    verdicts = judged(Port())
    assert set(verdicts) == set(CASES)
    assert set(verdicts.values()) == {Outcome.PASS}
    candle = judged(Port("candle", dialect="candle"), "seed")
    assert {case for case, outcome in candle.items() if outcome is not Outcome.PASS} == {
        "template-think-a-bit", "template-think-a-lot",
    }  # fmt: skip
    wrong = judged(WRONG["temperature first"])
    assert {case for case, outcome in wrong.items() if outcome is Outcome.FAIL} == {
         "order", "ties", "greedy-ties", "preset-creative",
    }  # fmt: skip


def test_backends_without_a_sampler_are_unsupported() -> None:
    record = run(Job("conformance", ("torch-cpu-f32",), suites=("sampling",), threads=1), print, lambda record: None)
    assert {verdict.outcome for verdict in record.verdicts} == {Outcome.UNSUPPORTED}
    assert record.exit_code() == 5


def test_bytes_are_the_conformance_vocabulary() -> None:
    with open_checkpoint("conformance") as weights, EquationSession(weights, "x", "f32") as session:
        assert isinstance(session.tokenizer, Bytes)
        assert session.sampling is None
        sampler = Sampler(sampling.OFF)
        assert [int(step[0]) for step in session.generate([1, 2], sampler, 3)]
