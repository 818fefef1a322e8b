"""The published JSON Schema of a record, made from the dataclasses, and a small checker of what it uses."""

import json
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

from reports.record import FORMAT, Measurement, Observation, Record, Subject, Verdict

NUMBER = {"anyOf": [{"type": "number"}, {"type": "null"}, {"enum": ["nan", "inf", "-inf"]}]}
"""A measured number: JSON knows no NaN, null is "could not be measured"."""

_ROWS: tuple[type[Any], ...] = (Subject, Measurement, Observation, Verdict)
_PLAIN = {str: "string", int: "integer", bool: "boolean"}
_TYPES: dict[str, tuple[type[Any], ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the files that `Record.to_json` writes."""
    top = _object(Record)
    top["properties"]["format"] = {"const": FORMAT, "description": "number of the file format"}
    top["required"] = sorted({*top["required"], "format", "subjects", "measurements", "observations", "verdicts"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rwkv-harness record",
        **top,
        "$defs": {kind.__name__: {**_object(kind), "additionalProperties": False} for kind in _ROWS},
    }


def published() -> str:
    """The schema as the text of `docs/record.schema.json`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _object(kind: type[Any]) -> dict[str, Any]:
    """The schema of one dataclass."""
    hints, words = get_type_hints(kind), _attributes(kind)
    properties = {
        field.name: _of(hints[field.name]) | ({"description": words[field.name]} if field.name in words else {})
        for field in fields(kind)
    }
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip().split("\n")[0],
        "properties": properties,
        "required": [field.name for field in fields(kind) if _required(field)],
    }


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _of(hint: Any) -> dict[str, Any]:
    """The schema of one annotation, as far as records use them."""
    if get_origin(hint) in (types.UnionType, Union):
        return dict(NUMBER)
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _of(get_args(hint)[0])}
    if get_origin(hint) is dict:
        return {"type": "object"}
    if hint in _ROWS:
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if issubclass(hint, StrEnum):
        return {"enum": [member.value for member in hint]}
    return {"type": _PLAIN[hint]}


def _attributes(kind: type[Any]) -> dict[str, str]:
    """Name -> description, out of the section "Attributes" of the docstring."""
    _, _, text = (kind.__doc__ or "").partition("Attributes:\n")
    rows = re.findall(r"^ {8}(\w[\w, ]*): (.+(?:\n {12}.+)*)", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for names, words in rows for name in names.split(", ")}


def problems(data: Any) -> list[str]:
    """What is wrong with the plain data of a record, each with its place ("verdicts[3].outcome: ...")."""
    whole = schema()
    return list(_check(data, whole, whole["$defs"], "record"))


def _check(data: Any, rule: dict[str, Any], defs: dict[str, Any], place: str) -> Iterator[str]:
    """Walk data and schema together; knows the keywords that `schema` writes."""
    if "$ref" in rule:
        yield from _check(data, defs[rule["$ref"].rpartition("/")[2]], defs, place)
    elif "anyOf" in rule:
        if all(any(_check(data, choice, defs, place)) for choice in rule["anyOf"]):
            yield f"{place}: {_short(data)} is no number"
    elif "const" in rule and data != rule["const"]:
        yield f"{place}: {_short(data)} is not {rule['const']!r}"
    elif "enum" in rule and data not in rule["enum"]:
        yield f"{place}: {_short(data)} is none of {', '.join(rule['enum'])}"
    elif "type" in rule:
        yield from _check_type(data, rule, defs, place)


def _check_type(data: Any, rule: dict[str, Any], defs: dict[str, Any], place: str) -> Iterator[str]:
    kind = rule["type"]
    if not isinstance(data, _TYPES[kind]) or (isinstance(data, bool) and kind in ("number", "integer")):
        yield f"{place}: {_short(data)} is no {kind}"
        return
    if kind == "array":
        for index, item in enumerate(data):
            yield from _check(item, rule.get("items", {}), defs, f"{place}[{index}]")
    if kind == "object":
        yield from (f"{place}: {name!r} is missing" for name in rule.get("required", ()) if name not in data)
        known = rule.get("properties", {})
        if rule.get("additionalProperties") is False:
            yield from (f"{place}: {name!r} is unknown" for name in data if name not in known)
        for name in known:
            if name in data:
                yield from _check(data[name], known[name], defs, f"{place}.{name}")


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."
