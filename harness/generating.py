"""Command generate: continues one prompt on any backend."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.base import Session
from backends.errors import InputError, UsageError
from backends.prompts import render
from backends.registry import Spec, find, open_session, parse
from harness.answer import Answer, Feed
from harness.conversation import END_OF_DOCUMENT, ends_of, make_sampler, tokenizer_of
from harness.parameters import escapes, settings_of, shown
from harness.progress import Progress
from harness.terminal import Interrupt, Screen

if TYPE_CHECKING:
    from backends.weights import Weights

BACKENDS = ("torch-cuda-bf16", "torch-cpu-f32")
"""Which backend answers if none is named: the first that can run here and serves the model."""


def generate(options: argparse.Namespace) -> int:
    """Continue a prompt; exit code 130 if the user ended it."""
    prompt = _prompt(options)
    with opened(options) as (spec, _, session):
        settings = settings_of(options, session.info.model)
        unescaped = (lambda text: text) if options.no_escape else escapes
        text = render(settings.template, prompt, settings.system, unescaped(options.suffix))
        tokenizer = tokenizer_of(session)
        ids = tokenizer.encode(text) or _beginning(session)
        sampler = make_sampler(session, settings)
        sampler.start(ids)
        with Interrupt() as interrupt:
            limits = settings.limits(ends_of(session.info.model))
            answer = Answer(Feed(session, interrupt), tokenizer, sampler, limits, ids)
            _stream(answer, text, options.json)
    if options.json:
        facts = {"model": options.model, "backend": spec.id, "prompt": text, **outcome(answer)}
        print(json.dumps({**facts, "settings": shown(settings)}, indent=1, ensure_ascii=False))
    return 130 if answer.reason == "interrupted" else 0


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[tuple[Spec, "Weights", Session]]:
    """The model and the backend that were asked for.

    Raises:
        HarnessError: either cannot be opened.
    """
    from backends.checkpoint import open_checkpoint
    from harness.prepared import prepared

    with Progress() as progress:
        progress.tell(f"opening {options.model}")
        weights = open_checkpoint(options.model)
        try:
            spec = _spec(options, weights.facts.version)
            weights = prepared(weights, find(spec.backend), progress.tell)
            session = open_session(spec, weights, options.threads)
        except BaseException:
            weights.close()
            raise
    with weights, session:
        yield spec, weights, session


def _spec(options: argparse.Namespace, version: str) -> Spec:
    if options.backend:
        return parse(options.backend, options.device, options.dtype)
    for name in BACKENDS:
        row = find(name)
        if not row.available() and (not row.versions or version in row.versions):
            spec = parse(name, options.device, options.dtype)
            if options.device in ("", spec.device) and options.dtype in ("", spec.dtype):
                return spec
    wanted = " ".join(filter(None, [f"RWKV-{version}", options.device, options.dtype]))
    raise UsageError(f"neither {' nor '.join(BACKENDS)} serves {wanted} here; name a --backend.")


def _prompt(options: argparse.Namespace) -> str:
    """The text that was typed, or that stands in a file or on stdin."""
    given = [value for value in (options.prompt, options.file, options.stdin) if value is not None]
    if len(given) != 1:
        raise UsageError("generate takes one prompt: --prompt TEXT, --file FILE, or - for stdin.")
    if options.prompt is not None:
        return str(options.prompt) if options.no_escape else escapes(options.prompt)
    if options.stdin not in (None, "-"):
        raise UsageError(f"unexpected {options.stdin!r}; a prompt is given by --prompt, or - for stdin.")
    try:
        raw = Path(options.file).read_bytes() if options.file else sys.stdin.buffer.read()
        return raw.decode("utf-8")
    except OSError as error:
        raise InputError(f"{options.file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{options.file or 'stdin'} is no UTF-8 text (byte {error.start}).") from None


def _beginning(session: Session) -> list[int]:
    """What an empty prompt is: the end of the document before, where the vocabulary has one."""
    if ends_of(session.info.model):
        return [END_OF_DOCUMENT]
    raise UsageError("the prompt is empty, and this vocabulary has no token that begins a document.")


def _stream(answer: Answer, prompt: str, silent: bool) -> None:
    """The answer as it comes; on a terminal behind its prompt."""
    screen = Screen()
    if not silent and screen.live:
        screen.write(prompt, "dim")
    for piece in answer:
        if not silent:
            screen.write(piece)
    if not silent:
        screen.line()
        screen.aside(f"[{remark(answer)}]")


def remark(answer: Answer) -> str:
    """How fast it was, and why it ended where that is not the plain end."""
    drawn = f"{len(answer.ids)} tokens" if len(answer.ids) != 1 else "1 token"
    speed = f", {len(answer.ids) / answer.seconds:.1f} tokens/s" if answer.ids and answer.seconds else ""
    read = f"; prompt: {len(answer.prompt)} in {answer.prompt_seconds:.2f} s"
    return drawn + speed + read + {"limit": "; ended by --n", "interrupted": "; interrupted"}.get(answer.reason, "")


def outcome(answer: Answer) -> dict[str, Any]:
    """What `--json` tells of an answer."""
    return {
        "text": answer.text,
        "prompt_ids": list(answer.prompt),
        "ids": answer.ids,
        "ended_by": answer.reason,
        "prompt_seconds": answer.prompt_seconds,
        "seconds": answer.seconds,
        "tokens_per_second": len(answer.ids) / answer.seconds if answer.seconds else None,
    }
