"""The nine sections that a validation report opens with, in the order in which porters know them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from reports import analysis, views
from reports.document import Block, Blocks, Bullets, Cell, Code, Fold, not_run, per_case, say, table
from reports.record import Outcome, Record, Verdict
from reports.text import MISSING, Rich, Span, code, dim, listed, num, plural, rich, whole


def environment(record: Record) -> Blocks:
    """What computed, on what."""
    subjects = views.shown(record)
    blocks: list[Block] = []
    if subjects:
        rows = [[title, *(get(subject.info) for subject in subjects)] for title, get in _ENVIRONMENT]
        kept = [row for row in rows if any(cell for cell in row[1:])]
        columns: list[Cell] = ["", *(code(subject.id) for subject in subjects)]
        filled = [[cell or MISSING for cell in row] for row in kept]
        blocks.append(table(columns, filled, "What computed", "l" * len(columns)))
    facts = list(_machine(record.environment))
    if facts:
        blocks.append(table(["Machine", ""], facts, "The machine and the program", "ll"))
    return tuple(blocks) or (not_run(),)


def _framework(info: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in (info.get("packages") or {}).items())


def _device(info: dict[str, Any]) -> str:
    return " ".join(str(info[key]) for key in ("device", "device_name") if info.get(key))


def _words(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda info: str(info.get(key) or "")


_ENVIRONMENT: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("Framework", _framework),
    ("Backend", _words("backend")),
    ("Compute dtype", lambda info: str(info.get("dtype") or "").upper()),
    ("State dtype", lambda info: str(info.get("state_dtype") or "").upper()),
    ("Attention impl", _words("attention")),
    ("Device", _device),
    ("Threads", _words("threads")),
    ("Notes", lambda info: "; ".join(map(str, info.get("notes") or ()))),
)


def _machine(facts: dict[str, Any]) -> list[tuple[Rich, Rich]]:
    """The environment as label and value, nested tables in one line."""
    rows = []
    for key, value in facts.items():
        if isinstance(value, dict):
            text = ", ".join(f"{name} {item}" for name, item in value.items())
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            text = str(value) if isinstance(value, str) else num(value, 4)
        if text and value is not None:
            rows.append((rich(key.replace("_gib", " (GiB)").replace("_", " ")), rich(text)))
    return rows


_MODEL = (
    ("Model ID", "name"),
    ("Architecture", "version"),
    ("hidden_size", "n_embd"),
    ("num_layers", "n_layer"),
    ("head_dim", "head_size"),
    ("num_heads", "n_head"),
    ("vocab_size", "vocab_size"),
    ("intermediate_size", "n_ffn"),
    ("Parameters", "parameters"),
    ("LoRA ranks", "ranks"),
    ("Stored as", "stored"),
    ("Tokenizer", "tokenizer"),
    ("Recognised by", "evidence"),
)
_NICKNAMES = {"4": "Dove", "5": "Eagle", "6": "Finch", "7": "Goose"}


def model(record: Record) -> Blocks:
    """Identity and sizes of the checkpoint."""
    rows = [(title, _model_value(key, record.model[key])) for title, key in _MODEL if record.model.get(key)]
    return (table(["", "Value"], rows, "The checkpoint", "ll"),) if rows else (not_run(),)


def _model_value(key: str, value: Any) -> Rich:
    if key == "version":
        nickname = _NICKNAMES.get(str(value)[:1])
        return rich(f"RWKV-{value}{f' ({nickname})' if nickname else ''}")
    if key == "ranks" and isinstance(value, dict):
        return rich(", ".join(f"{name} {rank}" for name, rank in value.items()))
    if key == "parameters":
        return rich(whole(float(value)))
    return rich(code(value)) if key == "name" else rich(str(value))


def tokenization(record: Record) -> Blocks:
    """Ids and pieces of every prompt."""
    names = list(dict.fromkeys(seen.case for seen in views.evidence(record, "tokens")))
    return per_case("tokenization", names, partial(_tokens, record)) if names else (not_run(),)


def _tokens(record: Record, case: str) -> Blocks:
    """One prompt; subjects that agree share a column."""
    lists = {seen.subject: seen.data for seen in views.evidence(record, "tokens", case=case)}
    kinds: dict[tuple[int, ...], list[str]] = {}
    for subject, data in lists.items():
        kinds.setdefault(tuple(data["ids"]), []).append(subject)
    first = next(iter(lists.values()))
    table_of_ids = _ids_table(kinds, lists)
    return (say(*_agreement(kinds)), table_of_ids, say("Prompt: ", code(first["prompt"])))


def _agreement(kinds: dict[tuple[int, ...], list[str]]) -> list[str | Span]:
    ids, subjects = next(iter(kinds.items()))
    if len(kinds) > 1:
        groups = "; ".join(f"{listed(names)}: {plural(len(k), 'token')}" for k, names in kinds.items())
        return [Span("The tokenizations differ", "fail"), f" ({groups})."]
    bos = "no BOS" if ids[:1] != (0,) else "with BOS"
    who = "One tokenizer was asked" if len(subjects) == 1 else f"All {len(subjects)} produce identical tokenization"
    return [f"{who} ({plural(len(ids), 'token')}, {bos})."]


def _ids_table(kinds: dict[tuple[int, ...], list[str]], lists: dict[str, dict[str, Any]]) -> Block:
    """Position, piece and id; one pair of columns for each distinct tokenization."""
    columns: list[str | Span] = ["Position"]
    for names in kinds.values():
        columns += ["String", "ID"] if len(kinds) == 1 else [f"String ({listed(names, 2)})", "ID"]
    longest = max((len(ids) for ids in kinds), default=0)
    rows: list[list[str | Span]] = []
    for at in range(longest):
        row: list[str | Span] = [str(at)]
        for ids, names in kinds.items():
            pieces = lists[names[0]]["pieces"]
            row += [code(pieces[at]), str(ids[at])] if at < len(ids) else [MISSING, MISSING]
        rows.append(row)
    return table(columns, rows, "Tokens of the prompt", "r" + "lr" * len(kinds))


def criteria(record: Record) -> Blocks:
    """Every criterion with the worst case of each subject."""
    if not record.verdicts:
        return (not_run("nothing was judged"),)
    ordered = views.worst_first(record.verdicts)
    subjects = [s.id for s in record.subjects if any(v.subject == s.id for v in ordered)]
    subjects += [name for name in dict.fromkeys(v.subject for v in ordered) if name not in subjects]
    ids = list(dict.fromkeys(v.criterion for v in record.verdicts))
    rows = [_criterion_row([v for v in ordered if v.criterion == name], subjects) for name in ids]
    columns: list[Cell] = ["Criterion", "Allowed", *(code(name) for name in subjects), "Why"]
    align = "ll" + "r" * len(subjects) + "l"
    return (
        say("The worst case of each subject; what was measured, and the outcome."),
        table(columns, rows, "Criteria", align),
        Fold(rich(f"All {plural(len(ordered), 'verdict')}, worst first"), (_all_verdicts(ordered),)),
    )


def _criterion_row(verdicts: Sequence[Verdict], subjects: Sequence[str]) -> list[Cell]:
    """One criterion; a limit that differs by subject stands in the subject's cell."""
    worst = {name: next((v for v in verdicts if v.subject == name), None) for name in subjects}
    limits = {v.limit for v in worst.values() if v and v.limit}
    one = len(limits) == 1
    counts = {name: sum(v.subject == name for v in verdicts) for name in subjects}
    cells = [_criterion_cell(verdict, not one, counts[name]) for name, verdict in worst.items()]
    allowed = limits.pop() if one else ("by subject" if limits else MISSING)
    why = next((v.why for v in verdicts if v.why), "")
    return [code(verdicts[0].criterion), allowed, *cells, dim(why)]


def _criterion_cell(verdict: Verdict | None, with_limit: bool, count: int) -> Rich | str:
    if verdict is None:
        return MISSING
    spans = [Span(verdict.outcome.value, verdict.outcome.value)]
    if verdict.value is not None:
        spans.insert(0, Span(f"{num(verdict.value)} "))
    if with_limit and verdict.limit and verdict.outcome in (Outcome.PASS, Outcome.FAIL):
        spans.append(Span(f" ({verdict.limit})", "limit"))
    if count > 1:
        spans.append(dim(f" {count} cases"))
    return tuple(spans)


def _all_verdicts(verdicts: Sequence[Verdict]) -> Block:
    columns = ["Criterion", "Case", "Subject", "Measured", "Allowed", "Outcome", "Detail"]
    rows: list[list[Cell]] = []
    for v in verdicts:
        outcome = Span(v.outcome.value, v.outcome.value)
        rows.append([code(v.criterion), v.case, code(v.subject), num(v.value), v.limit or MISSING, outcome, v.detail])
    return table(columns, rows, "All verdicts, worst first", "lllrlll")


def generation(record: Record) -> Blocks:
    """Greedy text of everybody, and where it parts."""
    names = list(dict.fromkeys(seen.case for seen in views.evidence(record, "text", "generation")))
    return per_case("generation", names, partial(_generation, record)) if names else (not_run(),)


def _generation(record: Record, case: str) -> Blocks:
    texts = views.by_subject(record, "text", "generation", case)
    first = views.reference(record)
    base = texts.get(first.id) if first else None
    rows: list[list[Cell]] = [
        [code(name), *_parting(data)] for name, data in texts.items() if not first or name != first.id
    ]
    blocks: list[Block] = []
    if rows:
        columns = ["Subject", "Outcome", "Tokens", "Parts at", "Margin there", "Honest error explains"]
        blocks.append(table(columns, rows, "Agreement of greedy text with the reference", "llrrrr"))
    for name, data in texts.items():
        if base is not None and data is not base and data["ids"] == base["ids"]:
            blocks.append(say(code(name), ": the same text."))
        else:
            blocks.append(say(code(name), f", {plural(len(data['ids']), 'token')}:"))
            blocks.append(Code(str(data["prompt"]) + str(data["text"])))
    return tuple(blocks)


def _parting(data: dict[str, Any]) -> list[str | Span]:
    known = str(data["class"])
    style = {"EXACT": "pass", "TIE": "skipped", "DIVERGED": "fail"}.get(known, "dim")
    numbers = [num(data[key]) for key in ("parting", "margin", "allowed")]
    return [Span(known or MISSING, style), str(len(data["ids"])), *numbers]


def analysed(record: Record) -> Blocks:
    """The sentences of `analysis`, one paragraph a subject."""
    found = analysis.findings(record)
    if not found:
        return (not_run("there are no numbers to speak of"),)
    blocks: list[Block] = []
    for item in found:
        blocks.append(say(Span(f"{item.lead}. ", "strong"), item.sentences[0]))
        if item.sentences[1:]:
            blocks.append(Bullets(tuple(rich(sentence) for sentence in item.sentences[1:])))
    return tuple(blocks)


def reproduce(record: Record) -> Blocks:
    """The command, and what it ran on."""
    facts = record.environment
    commit, changed = facts.get("commit"), " with local changes" if facts.get("dirty") else ""
    lines = [f"# rwkv-harness at commit {commit}{changed}"] if commit else []
    lines += ["# the same run", record.command.replace("\n", "\\n")] if record.command else []
    lines += ["# draw this report again, without a model", f"python -m harness report --record {record.id}.json"]
    return (Code("\n".join(lines), "bash"),)
