"""What generate and chat can be told: options and `name=value` to Settings."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from backends.base import ModelFacts
from backends.errors import UsageError, unknown
from backends.prompts import TEMPLATES, template
from backends.sampling import PRESETS, Params, semantics
from harness.conversation import Settings, defaults

NUMBERS = {
    "temperature": "0 is greedy",
    "top_p": "mass to keep; 1 is off",
    "top_k": "tokens to keep; 0 is off",
    "presence": "subtracted from the logit of a token that occurred",
    "frequency": "subtracted once per decayed occurrence",
    "decay": "what a count keeps of itself at every step",
}
"""Parameters that are numbers: name -> help."""

WHOLE = ("top_k", "tokens", "seed")
"""Settings that are whole numbers."""


def add_options(p: argparse.ArgumentParser, chat: bool) -> None:
    """The options that both commands have."""
    forms = [name for name, row in TEMPLATES.items() if row.rounds or not chat]
    form = "chat" if chat else "raw"
    p.add_argument("--template", default=form, metavar="NAME", help=f"{', '.join(forms)} (default: {form})")
    p.add_argument("--system", default="", metavar="TEXT", help="stands before the first round of chat and think forms")
    p.add_argument(
        "--sampling", default="official", metavar="NAME", help="semantics: official (the `rwkv` package) or candle"
    )
    p.add_argument("--preset", default="", metavar="NAME", help=f"parameters: {' or '.join(PRESETS)}")
    for name, text in NUMBERS.items():
        kind = int if name in WHOLE else float
        aliases = [f"--alpha-{name}"] if name in ("presence", "frequency", "decay") else []
        p.add_argument(f"--{name.replace('_', '-')}", *aliases, type=kind, default=None, metavar="X", help=text)
    p.add_argument("--exempt", metavar="TEXT", help="tokens inside this text have no frequency penalty (official)")
    p.add_argument("--stop", action="append", metavar="TEXT", help="ends the answer; repeatable; default: the form's")
    p.add_argument("--n", type=int, default=500 if chat else 200, metavar="N", help="most tokens of an answer")
    p.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    p.add_argument("--no-escape", action="store_true", help=r"leave \n, \t and \\ in texts of options as they are")


def settings_of(options: argparse.Namespace, facts: ModelFacts) -> Settings:
    """Settings from a parsed command line.

    Raises:
        UsageError: an unknown name, or a value out of its range.
    """
    params = defaults(facts, options.sampling, preset(options.preset) if options.preset else None)
    typed = {name: getattr(options, name) for name in (*NUMBERS, "exempt") if getattr(options, name) is not None}
    unescaped = (lambda text: text) if options.no_escape else escapes
    stops = None if options.stop is None else tuple(unescaped(text) for text in options.stop)
    return checked(
        Settings(
            params=replace(params, **typed),
            sampling=options.sampling,
            seed=options.seed,
            tokens=options.n,
            template=options.template,
            system=unescaped(options.system),
            stops=stops,
        )
    )


def preset(name: str) -> Params:
    """Parameters of that name, or a UsageError with what exists."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def checked(settings: Settings) -> Settings:
    """The settings themselves, or a UsageError about what they name."""
    template(settings.template)
    semantics(settings.sampling)
    if settings.tokens < 1:
        raise UsageError(f"an answer has at least 1 token, got {settings.tokens}.")
    if settings.seed < 0:
        raise UsageError(f"the seed must be at least 0, got {settings.seed}.")
    if settings.stops and not all(settings.stops):
        raise UsageError("a stop text must not be empty.")
    return settings


def shown(settings: Settings) -> dict[str, Any]:
    """Every setting by the name that `/params name=value` takes."""
    params = {field.name: getattr(settings.params, field.name) for field in fields(Params)}
    return {
        **params,
        "sampling": settings.sampling,
        "n": settings.tokens,
        "seed": settings.seed,
        "template": settings.template,
        "system": settings.system,
        "stop": settings.limits().stops,
    }


def changed(settings: Settings, typed: Mapping[str, str], facts: ModelFacts) -> Settings:
    """Settings after `name=value` pairs.

    Args:
        settings: before.
        typed: name, as in `shown`, or "preset" -> value as typed.
        facts: of the model, for presets.

    Raises:
        UsageError: an unknown name, or a value that does not fit.
    """
    for key, text in typed.items():
        settings = _changed(settings, key, text, facts)
    return checked(settings)


def _changed(settings: Settings, key: str, text: str, facts: ModelFacts) -> Settings:
    if key == "preset":
        return replace(settings, params=defaults(facts, settings.sampling, preset(text)))
    if key not in (known := shown(settings)):
        raise unknown("parameter", key, [*known, "preset"])
    if key == "stop":
        return replace(settings, stops=(escapes(text),) if text else ())
    name = {"n": "tokens"}.get(key, key)
    value: Any = _number(name, text) if name in (*NUMBERS, *WHOLE) else escapes(text)
    if key in {field.name for field in fields(Params)}:
        return replace(settings, params=replace(settings.params, **{name: value}))
    return replace(settings, **{name: value})


def _number(name: str, text: str) -> float:
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        kind = "whole number" if name in WHOLE else "number"
        raise UsageError(f"{name.replace('_', '-')} takes a {kind}, got {text!r}.") from None


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def escapes(text: str) -> str:
    r"""A text as typed in a shell: \n, \t, \r and \\ become what they stand for; other backslashes stay."""
    return re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], text)
