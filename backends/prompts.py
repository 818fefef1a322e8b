"""Prompt templates of the RWKV-7 "G1" models: raw, chat, think, think-a-bit, think-a-lot, fake-think, fim.

Rounds are parted by an empty line, so user and system text must hold none. Nothing stands behind `Assistant:`, because
the next token begins with the blank; `<think` and `</think` lack their last character, because a token may hold it
together with what follows. Two dialects: "official" (the models' own template file), and "candle", what candle's
RWKV-7 example makes of the same names; its prompts end in `A:`, and differ where a text holds empty lines.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backends.errors import UsageError, unknown

SEPARATOR = "\n\n"
"""Between two rounds of a conversation."""

FLOWER = "\u273f"
"""Opens and closes the parts of a fill-in-the-middle prompt; ends the answer."""


@dataclass(frozen=True)
class Template:
    """One form of prompt.

    Attributes:
        summary: one line for the list.
        question: put behind the user's text.
        opening: what the answer starts with, put behind `Assistant:`.
        stops: texts that end the answer.
        rounds: whether a conversation can be held in it.
    """

    summary: str
    question: str = ""
    opening: str = ""
    stops: tuple[str, ...] = ()
    rounds: bool = True


TEMPLATES: Mapping[str, Template] = {
    "raw": Template("the text as it is", rounds=False),
    "chat": Template("User: ... Assistant:", stops=(SEPARATOR,)),
    "think": Template("the answer begins with its reasoning", opening=" <think", stops=("\n\nUser",)),
    "think-a-bit": Template("short reasoning", " (think a bit)", " <think", ("\n\nUser",)),
    "think-a-lot": Template("long reasoning", " (think a lot)", " <think", ("\n\nUser",)),
    "fake-think": Template("an empty reasoning, then the answer", "", " <think>\n</think", (SEPARATOR,)),
    "fim": Template("fill in the middle, between prompt and suffix", stops=(FLOWER,), rounds=False),
}
"""Every form by name. `think` and its lengths may reason over several paragraphs, so only the next turn ends them."""

DIALECTS = ("official", "candle")

_CANDLE_OPENING = {"chat": "", "think": " <think>", "fake-think": " <think></think"}


def template(name: str) -> Template:
    """The row of that name, or a UsageError with near matches."""
    if name not in TEMPLATES:
        raise unknown("template", name, TEMPLATES)
    return TEMPLATES[name]


def clean(text: str) -> str:
    """A user's or system's text without empty lines: CRLF becomes LF, runs of LF one, and the ends are stripped."""
    return re.sub(r"\n{2,}", "\n", text.replace("\r\n", "\n")).strip()


def render(name: str, prompt: str, system: str = "", suffix: str = "", dialect: str = "official") -> str:
    """The text that is fed to the model.

    Args:
        name: of the template.
        prompt: what the user typed.
        system: stands before the first round; chat and think forms only.
        suffix: what follows the gap; fim only.
        dialect: "official" or "candle".

    Raises:
        UsageError: an unknown template, one that the dialect lacks, or a part that the template has no place for.
    """
    row = template(name)
    if system and not row.rounds:
        raise UsageError(f"template {name} has no place for a system text; chat and the think templates have.")
    if suffix and name != "fim":
        raise UsageError(f"template {name} has no place for a suffix; fim has.")
    return _DIALECTS[dialect](name, row, prompt, system, suffix)


def turn(name: str, prompt: str, system: str = "") -> str:
    """One round of a conversation, up to where the model answers; `system` for the first round only.

    Raises:
        UsageError: the template is for single texts.
    """
    row = template(name)
    if not row.rounds:
        known = ", ".join(key for key, value in TEMPLATES.items() if value.rounds)
        raise UsageError(f"template {name} holds no conversation; these do: {known}.")
    head = f"System: {clean(system)}{SEPARATOR}" if system else ""
    return f"{head}User: {clean(prompt)}{row.question}{SEPARATOR}Assistant:{row.opening}"


def _official(name: str, row: Template, prompt: str, system: str, suffix: str) -> str:
    if name == "fim":
        return _fim(prompt, suffix)
    return turn(name, prompt, system) if row.rounds else prompt


def _candle(name: str, row: Template, prompt: str, system: str, suffix: str) -> str:
    if name == "fim":
        return _fim(prompt, suffix).rstrip()  # the example strips the end of whatever it feeds
    if not row.rounds:
        return prompt.rstrip()
    if name not in _CANDLE_OPENING:
        raise UsageError(f"candle's example has no template {name}.")
    head = f"System: {system}{SEPARATOR}" if system else ""  # as typed
    return f"{head}User: {prompt.replace(SEPARATOR, chr(10))}{SEPARATOR}A:{_CANDLE_OPENING[name]}"


def _fim(prefix: str, suffix: str) -> str:
    """The prefix slot stays empty: the real prefix comes last, where generation goes on with it."""
    return f"{FLOWER}prefix{FLOWER}{FLOWER}suffix{FLOWER}{suffix}{FLOWER}middle{FLOWER}{prefix}"


_DIALECTS: Mapping[str, Callable[[str, Template, str, str, str], str]] = {"official": _official, "candle": _candle}
