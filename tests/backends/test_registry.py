import sys
import types
from importlib.metadata import EntryPoint

import pytest

from backends import registry
from backends.base import Session
from backends.errors import BackendError, HarnessError, InputError, Unsupported, UsageError
from tests.backends.random_model import as_weights, random_rwkv7


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("torch-compile", "torch-compile"),
        ("torch-compile@f32", "torch-compile"),
        ("torch-compile@bf16", "torch-compile@bf16"),
        ("torch-compile@bf16,cuda", "torch-compile@cuda,bf16"),
        ("torch-compile@cuda:1", "torch-compile@cuda:1"),
        ("honest:7@f32", "honest:7@f32"),
        ("reference-f64", "reference-f64"),
    ],
)
def test_a_subject_has_one_shortest_spelling(text: str, id_: str) -> None:
    assert registry.parse(text).id == id_
    assert registry.parse(registry.parse(text).id) == registry.parse(text)


def test_what_is_left_open_takes_the_general_options_where_they_fit() -> None:
    assert registry.parse("torch-compile", device="cuda", dtype="bf16").id == "torch-compile@cuda,bf16"
    assert registry.parse("torch-cpu-f32", device="cuda", dtype="bf16").id == "torch-cpu-f32"
    assert registry.parse("torch-compile@f32", dtype="bf16").id == "torch-compile"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("torch-compil", "Did you mean torch-compile"),
        ("nothing-like-it", "Known: "),
        ("torch-cpu-f32@bf16", "serves dtype f32, not bf16"),
        ("torch-cpu-f32@cuda", "serves device cpu, not cuda"),
        ("torch-cpu-f32:x", "takes no argument"),
    ],
)
def test_a_wrong_subject_is_a_usage_error_in_words(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        registry.parse(text)


def test_an_at_sign_inside_an_argument_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    row = registry.Backend("run", "", "json:loads", argument="a command")
    monkeypatch.setattr(registry, "table", lambda: {"run": row})
    assert registry.parse("run:./port --to me@there").argument == "./port --to me@there"


def test_a_backend_says_why_it_is_not_available() -> None:
    assert (
        "'no_such_module' is not installed"
        in registry.Backend("x", "", "json:loads", requires=("no_such_module",)).available()
    )
    assert registry.Backend("x", "", "json:loads", probe=lambda: "no card").available() == "no card"


def test_opening_names_what_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = as_weights(random_rwkv7(C=64, N=16, L=2, V=97))
    rows = {
        "absent": registry.Backend("absent", "", "json:loads", probe=lambda: "no card"),
        "old": registry.Backend("old", "", "json:loads", versions=("4",)),
    }
    monkeypatch.setattr(registry, "table", lambda: rows)
    with pytest.raises(BackendError, match="not available: no card"):
        registry.open_session(registry.parse("absent"), weights)
    with pytest.raises(Unsupported, match="serves RWKV 4, not 7"):
        registry.open_session(registry.parse("old"), weights)


def test_entry_points_add_backends_and_never_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("port_under_test")
    module.row = registry.Backend("port", "somebody's", "json:loads")  # type: ignore[attr-defined]
    module.impostor = registry.Backend("torch-cpu-f32", "not ours", "json:loads")  # type: ignore[attr-defined]
    module.wrong = "no backend"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "port_under_test", module)

    def offer(*names: str) -> None:
        points = [EntryPoint(name, f"port_under_test:{name}", registry.GROUP) for name in names]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])
        registry.table.cache_clear()

    try:
        offer("row", "impostor")
        assert registry.table()["port"].summary == "somebody's"
        assert registry.table()["torch-cpu-f32"].summary != "not ours"
        offer("wrong")
        with pytest.raises(BackendError, match=r"no backends\.registry\.Backend"):
            registry.table()
    finally:
        monkeypatch.undo()
        registry.table.cache_clear()


def test_openers_may_be_functions() -> None:
    def opener(*_: object, **__: object) -> Session:
        raise AssertionError("never called here")

    assert registry.Backend("x", "", opener).load() is opener


def test_the_exit_codes_hang_on_the_tree_of_errors() -> None:
    assert [kind.exit_code for kind in (HarnessError, UsageError, InputError, BackendError)] == [4, 2, 3, 4]
