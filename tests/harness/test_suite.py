"""Suites as data: what the package ships, and what a file may not say."""

import json

import pytest

from backends.errors import HarnessError, UsageError
from backends.tokenizer import open_tokenizer
from harness import suite
from harness.truth import measure_of

LANGUAGES = {"en", "zh", "fr", "es", "de", "pt", "ru", "it", "ja", "ko", "vi", "ar"}
"""What the RWKV World models are trained for."""

HEAD = 'version = 1\nquestion = "?"\n'


@pytest.mark.parametrize("name", suite.names())
def test_a_shipped_suite_is_whole(name: str) -> None:
    found = suite.load(name)
    assert found.name == name
    assert found.version >= 1
    assert found.question.endswith("?") or "?" in found.question
    assert found.cases
    assert len({case.name for case in found.cases}) == len(found.cases)
    for case in found.cases:
        assert isinstance(case.text, str)
    facts = found.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert [case["name"] for case in facts["cases"]] == [case.name for case in found.cases]


@pytest.mark.parametrize("name", [name for name in suite.names() if name != "speed"])
def test_a_shipped_suite_has_its_measure(name: str) -> None:
    module = measure_of(suite.load(name))
    for verb in ("collect", "compare", "observe"):
        assert callable(getattr(module, verb))


def test_the_order_is_the_documents() -> None:
    assert suite.names()[: len(suite.DEFAULT)] == suite.DEFAULT


def test_every_prompt_is_used_and_not_repeated() -> None:
    used = {case.prompt for name in suite.names() for case in suite.load(name).cases}
    assert used == set(suite.prompts())
    texts = [prompt.text for prompt in suite.prompts().values()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["logits", "tokenization"])
def test_all_languages_are_asked(name: str) -> None:
    assert {case.name for case in suite.load(name).cases} >= LANGUAGES


@pytest.mark.parametrize("name", [name for name, prompt in suite.prompts().items() if prompt.world])
@pytest.mark.parametrize("tokenizer", ["world", "pyrwkv"])
def test_published_ids_are_those_of_both_tokenizers(name: str, tokenizer: str) -> None:
    prompt = suite.prompts()[name]
    assert tuple(open_tokenizer(tokenizer).encode(prompt.text)) == prompt.world


def test_the_seeds_ids_are_kept() -> None:
    """candle-mi published these for its prompt."""
    prompt = suite.prompts()["fibonacci"]
    assert prompt.text == "def fibonacci(n):\n    "
    assert prompt.world == (7334, 21676, 41943, 41, 111, 501, 28352)


def test_cases_start_from_the_suites_options() -> None:
    found = suite.parse(
        HEAD + 'options = { top = 3, k = 1 }\ncases = ["en", { name = "x", prompt = "zh", top = 5 }]', "mine"
    )
    first, second = found.cases
    assert (first.name, first.prompt, first.options) == ("en", "en", {"top": 3, "k": 1})
    assert (second.name, second.text, second.options) == ("x", suite.prompts()["zh"].text, {"top": 5, "k": 1})
    assert found.measure == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + 'cases = ["en"]\nneed = ["state"]', "unknown key need; known: cases, envelope, "),
        (HEAD + 'cases = ["en"]\nneeds = ["wings"]', "needs wings, which is no ability"),
        (HEAD + 'cases = ["english"]', "case english: unknown prompt 'english'"),
        (HEAD + 'cases = ["en", { name = "en", prompt = "zh" }]', "two cases have one name"),
        (HEAD, "version, question and cases are needed"),
        ('version = 1\ncases = ["en"]', "version, question and cases are needed"),
    ],
)
def test_a_wrong_file_is_an_error_in_words(text: str, words: str) -> None:
    with pytest.raises(HarnessError, match="suite mine") as caught:
        suite.parse(text, "mine")
    assert words in str(caught.value)


def test_an_unknown_suite_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="Did you mean stepwise"):
        suite.load("stepwize")
