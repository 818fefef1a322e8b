"""What can be typed: commands, options, their help. No command is run here."""

import argparse
import difflib
import os
from collections.abc import Iterator
from typing import NoReturn

from backends.errors import UsageError
from harness import __version__

OUT = "reports/out"
FORMATS = ("html", "md", "json", "junit", "csv", "summary")

EXIT_CODES = """\
exit codes: 0 passed, 1 a criterion failed, 2 usage, 3 an input is missing or unreadable,
            4 a backend or the harness broke, 5 nothing was judged, 130 interrupted"""

MODEL_HELP = "a .pth, .safetensors or HF folder; a hub id; conformance; synthetic:rwkv7-0.1b (see `models`)"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are raised, with near matches for what was misspelt."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        known = sorted(set(self._known()))
        wrong = [word for word in message.split() if word.startswith("-")]
        near = [match for word in wrong for match in difflib.get_close_matches(word, known, n=2)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"{message}.{hint} `{self.prog} --help` lists what there is.")

    def _known(self) -> Iterator[str]:
        """Every option, those of the commands included."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from command._known()


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="python -m harness",
        description="Proves that a port of RWKV computes what RWKV does, says where it does not, and how fast it is.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"rwkv-harness {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _validate(
        commands.add_parser(
            "validate", help="run suites, judge, write the report", epilog=EXIT_CODES, allow_abbrev=False
        )
    )
    _report(commands.add_parser("report", help="draw the documents of a record, or of a new run", allow_abbrev=False))
    _bench(commands.add_parser("bench", help="tokens/s of subjects whose logits are right", allow_abbrev=False))
    _compare(
        commands.add_parser(
            "compare", help="judge a port's dump by a kit, or compare two saved records or dumps", allow_abbrev=False
        )
    )
    _kit(commands.add_parser("kit", help="write the folder that a port in any language consumes", allow_abbrev=False))
    _record(commands.add_parser("record", help="keep a backend's answers, to be judged elsewhere", allow_abbrev=False))
    _diagnose(
        commands.add_parser(
            "diagnose",
            help="which tensor of a backend is wrong, where, and which known mistake explains it",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _power(
        commands.add_parser(
            "power",
            help="which known mistakes a profile catches on a checkpoint, and whom it accuses wrongly",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _generate(commands.add_parser("generate", help="continue a prompt, on any backend", allow_abbrev=False))
    _chat(commands.add_parser("chat", help="hold a conversation, on any backend", allow_abbrev=False))
    _convert(
        commands.add_parser(
            "convert", help="write a checkpoint in another format, and prove what was written", allow_abbrev=False
        )
    )
    _pull(commands.add_parser("pull", help="download a released model, and check it", allow_abbrev=False))
    for name, text in (
        ("backends", "which backends there are, and why one cannot run here"),
        ("models", "what --model takes, and what of it is here"),
    ):
        _json(commands.add_parser(name, help=text, allow_abbrev=False))
    suites = commands.add_parser(
        "suites", help="suites, their cases, and the criteria of a profile", allow_abbrev=False
    )
    suites.add_argument("--profile", default="strict", help="whose criteria to show (default: strict)")
    _json(suites)
    _new_backend(
        commands.add_parser("new-backend", help="write a backend of your own, to be filled in", allow_abbrev=False)
    )
    return top


def _validate(p: argparse.ArgumentParser) -> None:
    _what(p)
    _again(p)
    p.add_argument("--suite", action="append", default=[], metavar="NAME", help="repeatable, or a,b; default: all")
    p.add_argument("--profile", default="strict", help="criteria: strict (default) or seed")
    p.add_argument("--resume", action="store_true", help="go on with the last unfinished run of the same job")
    p.add_argument("--no-diagnosis", action="store_true", help="do not look for the cause of a failure")
    _use(p)
    _where(p)


def _report(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--record",
        action="append",
        default=[],
        metavar="FILE",
        help="a record to draw again, several for --format speed; default: the latest in --out, else a new run",
    )
    p.add_argument("--profile", default="", help="judge again by this profile first")
    _what(p)
    _again(p)
    _use(p)
    _where(p)
    p.set_defaults(suite=[], resume=False, no_diagnosis=True)


def _again(p: argparse.ArgumentParser) -> None:
    p.add_argument("--fresh", action="store_true", help="take honest runs again that the cache in --out has")


def _use(p: argparse.ArgumentParser) -> None:
    text = "trained checkpoint to show the candidates at work on, or none (default: demo beside all of conformance)"
    p.add_argument("--use", default="", metavar="MODEL", help=text)


def _bench(p: argparse.ArgumentParser) -> None:
    _what(p)
    _again(p)
    from harness.racing import add_options

    add_options(p)
    p.add_argument("--profile", default="strict", help="criteria that logits must pass before speed counts")
    p.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    _where(p)
    p.set_defaults(suite=["logits", "speed"], no_diagnosis=True, use="none")


def _compare(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "a", metavar="REFERENCE", help="a kit, a record, or a dump: .json, .bin, .npy, .safetensors, a folder of it"
    )
    p.add_argument("b", metavar="CANDIDATE", help="what is compared with it")
    p.add_argument("--profile", default="strict", help="criteria: strict (default) or seed")
    _where(p, out="")


def _power(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", default="conformance", help=MODEL_HELP + " (default: conformance)")
    p.add_argument("--profile", default="strict", help="whose verdicts count: strict (default) or seed; both are shown")
    p.add_argument("--dtype", action="append", default=[], metavar="D", help="repeatable, or a,b; default: f32,bf16")
    p.add_argument("--fault", action="append", default=[], metavar="NAME", help="only these, repeatable; default: all")
    p.add_argument(
        "--seeds", type=_count, default=20, metavar="N", help="honest runs in every number format (default: 20)"
    )
    p.add_argument("--processes", type=_count, default=0, metavar="N", help="default: one a core, 8 at most")
    p.add_argument("--fresh", action="store_true", help="measure again what the cache in --out has")
    p.add_argument("--out", default=OUT, metavar="DIR", help=f"folder whose cache is used (default: {OUT})")
    _json(p)


def _kit(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", default="conformance", help=MODEL_HELP + " (default: conformance)")
    p.add_argument("--tokens", type=_count, default=80, metavar="N", help="length of the prompt (default: 80)")
    p.add_argument("--honest-runs", type=_count, default=16, metavar="N", help="runs for the bands (default: 16)")
    p.add_argument("--dtype", default="f32", help="of the checkpoint's file: f32 (default), bf16 or f16")
    p.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder, or an earlier kit")
    _json(p)


def _record(p: argparse.ArgumentParser) -> None:
    p.add_argument("--backend", required=True, metavar="NAME", help="NAME[@dtype][@device]")
    p.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder, or an earlier one of this kind")
    p.add_argument("--kit", default="", metavar="DIR", help="write a dump of this kit's checkpoint and prompt instead")
    p.add_argument("--model", default="", help=MODEL_HELP + " (default: conformance)")
    p.add_argument("--suite", action="append", default=[], metavar="NAME", help="repeatable, or a,b; all but speed")
    p.add_argument("--reference", default="", metavar="NAME", help="whose tokens are fed (default: reference-f64)")
    p.add_argument("--device", default="", help="cpu or cuda, for a backend that leaves it open")
    p.add_argument("--dtype", default="", help="f32, bf16 or f16, for a backend that leaves it open")
    p.add_argument("--threads", type=_count, default=0, metavar="N", help="default: 1 for tiny models")
    p.add_argument("--seed", type=_count, default=0, help="of everything random (default: 0)")
    p.add_argument("--no-diagnosis", action="store_true", help="leave out what a diagnosis would ask")
    _json(p)


def _diagnose(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", default="conformance", help=MODEL_HELP + " (default: conformance)")
    p.add_argument(
        "--backend", action="append", default=[], metavar="NAME", required=True, help="candidate: NAME[@dtype][@device]"
    )
    p.add_argument("--device", default="", help="cpu or cuda, for backends that leave it open")
    p.add_argument("--dtype", default="", help="f32, bf16 or f16, for backends that leave it open")
    p.add_argument("--threads", type=_count, default=0, help="of every backend; default: 1 for tiny models")
    p.add_argument("--logits-only", action="store_true", help="leave traces aside even where a backend has them")
    _json(p)


def _generate(p: argparse.ArgumentParser) -> None:
    from harness.parameters import add_options

    _with(p)
    p.add_argument("stdin", nargs="?", metavar="-", help="read the prompt from stdin")
    p.add_argument("--prompt", metavar="TEXT", help=r"what to continue; \n, \t and \\ are understood")
    p.add_argument("--file", metavar="FILE", help="what to continue, as it stands in a file")
    p.add_argument("--suffix", default="", metavar="TEXT", help="what follows the gap, for --template fim")
    add_options(p, chat=False)
    _json(p)


def _chat(p: argparse.ArgumentParser) -> None:
    from harness.parameters import add_options

    _with(p)
    p.add_argument("--load", default="", metavar="FILE", help="go on with a conversation that /save kept")
    add_options(p, chat=True)


def _with(p: argparse.ArgumentParser) -> None:
    """One model on one backend."""
    p.add_argument("--model", default="conformance", help=MODEL_HELP + " (default: conformance)")
    p.add_argument(
        "--backend", default="", metavar="NAME", help="NAME[@dtype][@device]; default: CUDA if it can, else CPU"
    )
    p.add_argument("--device", default="", help="cpu or cuda, for backends that leave it open")
    p.add_argument("--dtype", default="", help="f32, bf16 or f16, for backends that leave it open")
    p.add_argument("--threads", type=_count, default=0, metavar="N", help="default: the backend's own choice")


def _convert(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="SRC", help=MODEL_HELP + ", rwkv.cpp .bin")
    p.add_argument("dest", metavar="DEST", help="a file, or a folder that does not exist yet")
    p.add_argument("--to", default="", metavar="FORMAT", help="pth, safetensors, hf, prepared; default: by DEST's name")
    p.add_argument("--dtype", default="", help="f32, bf16 or f16 (default: as stored)")
    p.add_argument("--config", default="", metavar="FILE", help="where config.json goes (default: beside safetensors)")
    _json(p)


def _pull(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME", help="a release that `models` lists, one by its naming rule, or a hub id")
    _json(p)


def _what(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", default="conformance", help=MODEL_HELP + " (default: conformance)")
    p.add_argument(
        "--backend", action="append", default=[], metavar="NAME", help="candidate, repeatable: NAME[@dtype][@device]"
    )
    p.add_argument("--reference", default="", metavar="NAME", help="what stands for the truth (default: reference-f64)")
    p.add_argument("--device", default="", help="cpu or cuda, for backends that leave it open")
    p.add_argument("--dtype", default="", help="f32, bf16 or f16, for backends that leave it open")
    p.add_argument(
        "--threads", type=_count, default=0, help="of every backend; default: 1 for tiny models, else its own choice"
    )
    p.add_argument("--seed", type=_count, default=0, help="of everything random (default: 0)")
    p.add_argument(
        "--honest-runs",
        type=_count,
        default=0,
        metavar="N",
        help="runs the envelope is taken from; default by model size",
    )


def _where(p: argparse.ArgumentParser, out: str = OUT) -> None:
    shown = out or "no files"
    p.add_argument("--out", default=out, metavar="DIR", help=f"folder for records and reports (default: {shown})")
    p.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="NAME",
        help=f"repeatable, of {', '.join(FORMATS)}; default: all; of `report` also speed, a page of timings",
    )
    _json(p)


def _json(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _new_backend(p: argparse.ArgumentParser) -> None:
    from harness.skeleton import add_options

    add_options(p)


def _count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def listed(values: list[str], kind: str, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Repeatable options that may also be written a,b."""
    names = tuple(name for value in values for name in value.split(",") if name)
    for name in names:
        if known and name not in known:
            from backends.errors import unknown

            raise unknown(kind, name, known)
    return names


def columns() -> int:
    """Width of the terminal, 80 in a pipe."""
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 80
