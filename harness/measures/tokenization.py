"""Tokenization: the subject's ids against an independent tokenizer's, and the way back to bytes.

The truth here is not the float64 reference but a second program: the Rust tokenizer for the World
vocabulary, Python's own UTF-8 for bytes. Published ids, where a prompt has them, overrule both.
"""

from backends.base import Session
from backends.errors import Unsupported
from backends.tokenizer import none_because
from harness.measures.base import Context, Evidence, Number, Sample
from harness.suite import prompts


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """Encode the prompt and decode it again with the session's own tokenizer."""
    del truth, rows
    if session.tokenizer is None:
        raise Unsupported(none_because(context.model))
    ids = list(session.tokenizer.encode(context.case.text))
    return [{"ids": ids, "bytes": session.tokenizer.decode_bytes(ids)}]


def independent(context: Context) -> Sample:
    """The same from the second program."""
    text = context.case.text
    raw = text.encode("utf-8")
    if context.model.tokenizer == "bytes":
        return {"ids": list(raw), "bytes": raw, "by": "Python's UTF-8 encoder"}
    if not context.model.tokenizer:
        raise Unsupported(none_because(context.model))
    published = prompts()[context.case.prompt].world
    if published:
        return {"ids": list(published), "bytes": raw, "by": "published ids"}
    from backends.tokenizer import open_tokenizer

    return {"ids": list(open_tokenizer("pyrwkv").encode(text)), "bytes": raw, "by": "pyrwkv-tokenizer"}


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """`ids_differ`: positions with another id, missing or surplus ones included; `bytes_differ`: 1 if not restored."""
    del context
    a, b = got["ids"], truth["ids"]
    differ = [i for i in range(max(len(a), len(b))) if a[i : i + 1] != b[i : i + 1]]
    where = f"token {differ[0]}: {a[differ[0] : differ[0] + 1]}, not {b[differ[0] : differ[0] + 1]}" if differ else ""
    return [
        Number("ids_differ", float(len(differ)), where=where),
        Number("bytes_differ", float(got["bytes"] != truth["bytes"])),
    ]


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """The ids and what each stands for."""
    yield (
        "tokens",
        {
            "prompt": context.case.text,
            "ids": got["ids"],
            "pieces": [context.piece(i) for i in got["ids"]],
            "same": got["ids"] == truth["ids"],
            "against": truth.get("by", ""),
        },
    )
