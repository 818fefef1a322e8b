"""Command chat: a conversation on a terminal, or line by line through a pipe."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from backends.errors import HarnessError, InputError, UsageError, unknown
from backends.prompts import template
from harness import saved
from harness.answer import InterruptedPromptError
from harness.conversation import Conversation
from harness.generating import opened, remark
from harness.parameters import changed, settings_of, shown
from harness.saved import Identity
from harness.terminal import Interrupt, Screen

HELP = """\
/reset                  forget what was said
/regen                  draw the last answer again
/save FILE, /load FILE  keep the conversation, go on with one
/params [NAME=VALUE]    how answers are drawn; changes it
/help, /quit            this; leave (as the end of input does)
Ctrl-C ends an answer. A line that ends in a backslash goes on in the next one."""


def chat(options: argparse.Namespace) -> int:
    """Hold a conversation until the input ends."""
    interrupt = Interrupt()
    with opened(options) as (spec, weights, session):
        settings = settings_of(options, session.info.model)
        known: list[Identity] = []

        def identity() -> Identity:
            """Computed when first asked for: it reads the weights."""
            if not known:
                known.append(saved.identity(weights))
            return known[0]

        table = Talk(Conversation(session, settings, interrupt), identity, interrupt)
        facts = session.info.model
        table.screen.aside(
            f"{facts.name}: RWKV-{facts.version}, {facts.parameters:,} parameters, on {spec.id}. /help lists commands."
        )
        if options.load:
            table.load(options.load)
        table.run()
    return 0


class Talk:
    """The loop of reading lines and answering them.

    Args:
        conversation: what is talked to.
        identity: of its model, for files.
        interrupt: what the conversation asks between two tokens.
    """

    def __init__(self, conversation: Conversation, identity: Callable[[], Identity], interrupt: Interrupt) -> None:
        self.conversation, self.identity, self.interrupt = conversation, identity, interrupt
        self.screen = Screen()
        self.typing = sys.stdin.isatty() and self.screen.live
        self.commands: Mapping[str, Callable[[str], None]] = {
            "/reset": self.reset,
            "/regen": self.regen,
            "/save": self.save,
            "/load": self.load,
            "/params": self.params,
            "/help": self.help,
        }

    def run(self) -> None:
        """Read and answer until the input ends or somebody quits."""
        for line in self._lines():
            if line.split()[:1] in (["/quit"], ["/exit"]):
                return
            try:
                self._heed(line)
            except HarnessError as error:
                self.complain(str(error))
            except KeyboardInterrupt:  # before or behind an answer, inside a command
                self.screen.line()

    def _lines(self) -> Iterator[str]:
        """What was typed, without empty lines; Ctrl-C empties the line."""
        if self.typing:
            _line_editing()
        parts: list[str] = []
        while True:
            try:
                part = input(self._prompt("... " if parts else "User: "))
            except KeyboardInterrupt:
                self.screen.line()
                self.screen.aside("(/quit or Ctrl-D leaves)")
                parts = []
                continue
            except EOFError:
                self.screen.aside("")
                return
            except UnicodeDecodeError as error:
                raise InputError(f"the input is no UTF-8 text: {error.reason}.") from None
            parts.append(part.removesuffix("\\"))
            if not part.endswith("\\"):
                text, parts = "\n".join(parts).strip(), []
                if text:
                    yield text

    def _prompt(self, text: str) -> str:
        """Colours between the marks that tell the line editor that they take no room."""
        return f"\x01\x1b[1;36m\x02{text}\x01\x1b[0m\x02" if self.typing else ""

    def _heed(self, line: str) -> None:
        if not line.startswith("/"):
            self._answer(self.conversation.say(line))
            return
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            raise unknown("command", name, [*self.commands, "/quit"])
        self.commands[name](rest.strip())

    def _answer(self, pieces: Iterator[str]) -> None:
        """Show an answer as it comes; Ctrl-C ends it."""
        opening, begun = template(self.conversation.settings.template).opening.lstrip(), False
        with self.interrupt:  # before a person sees that there is something to interrupt
            try:
                if self.typing:
                    self.screen.write("Assistant: ", "model")
                self.screen.write(opening)
                for piece in pieces:
                    self.screen.write(piece if begun or opening else piece.lstrip(" "))
                    begun = True
            except (InterruptedPromptError, KeyboardInterrupt):
                self.screen.line()
                self.screen.aside("(interrupted)")
                return
        self.screen.line()
        if self.conversation.last is not None:
            self.screen.aside(f"[{remark(self.conversation.last)}]")

    def complain(self, text: str) -> None:
        """One line about what cannot be done; the conversation goes on."""
        if self.screen.live:
            self.screen.line(text, "error")
        else:
            sys.stderr.write(f"error: {text}\n")

    def reset(self, rest: str) -> None:
        """Forget everything."""
        _nothing("/reset", rest)
        self.conversation.reset()
        self.screen.aside("forgotten")

    def regen(self, rest: str) -> None:
        """Draw the last answer again."""
        _nothing("/regen", rest)
        self._answer(self.conversation.again())

    def save(self, rest: str) -> None:
        """Keep the conversation."""
        path = _path("/save", rest)
        saved.save(self.conversation, self.identity(), path)
        self.screen.aside(f"saved {path}: {path.stat().st_size:,} bytes")

    def load(self, rest: str) -> None:
        """Go on with a conversation that was kept."""
        path = _path("/load", rest)
        saved.load(self.conversation, self.identity(), path)
        rounds = self.conversation.point.rounds
        for question, answer in rounds[-1:]:
            self.screen.aside(f"User: {question}\nAssistant: {answer.strip()}")
        self.screen.aside(f"{len(rounds)} rounds, settings and luck as they were")

    def params(self, rest: str) -> None:
        """Show or change how answers are drawn."""
        pairs = [_pair(word) for word in _words(rest)]
        if pairs:
            facts = self.conversation.session.info.model
            self.conversation.change(changed(self.conversation.settings, dict(pairs), facts))
        for name, value in shown(self.conversation.settings).items():
            if not pairs or name in dict(pairs) or "preset" in dict(pairs):
                self.screen.line(f"{name}={value!r}" if isinstance(value, str | tuple) else f"{name}={value:g}")

    def help(self, rest: str) -> None:
        """Say what can be typed."""
        del rest
        self.screen.line(HELP)


def _words(text: str) -> list[str]:
    """Words as a shell splits them, so that values may hold blanks."""
    import shlex

    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars="")
        lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
        return list(lexer)
    except ValueError as error:
        raise UsageError(f"/params: {error}.") from None


def _pair(word: str) -> tuple[str, str]:
    name, sign, value = word.partition("=")
    if not sign:
        raise UsageError(f"/params takes NAME=VALUE, got {word!r}; /params alone lists the names.")
    return name.replace("-", "_"), value


def _path(command: str, rest: str) -> Path:
    if not rest:
        raise UsageError(f"{command} takes a file.")
    return Path(rest).expanduser()


def _nothing(command: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{command} takes nothing, got {rest!r}.")


def _line_editing() -> None:
    """Arrow keys and history, where Python was built with them."""
    try:
        import readline
    except ImportError:
        return
    readline.clear_history()  # what other prompts of this process left
