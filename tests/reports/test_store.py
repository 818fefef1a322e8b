import json
import math
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reports import store
from reports.record import Measurement, Record, RecordError
from tests.reports import sample


def test_saved_is_loaded(tmp_path: Path) -> None:
    for record in (sample.record(), sample.failing(), sample.empty(), sample.hostile()):
        path = store.save(record, tmp_path)
        assert path.name == f"{record.id}.json"
        assert store.load(path).to_json() == record.to_json()
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))


def test_nan_survives(tmp_path: Path) -> None:
    numbers = (math.nan, math.inf, -math.inf, None, 0.1)
    record = replace(sample.empty(), measurements=tuple(Measurement("s", "c", "x", "n", number) for number in numbers))
    back = [m.value for m in store.load(store.save(record, tmp_path)).measurements]
    assert back[0] is not None
    assert math.isnan(back[0])
    assert back[1:] == [math.inf, -math.inf, None, 0.1]


def test_running_is_updated_and_complete_is_not(tmp_path: Path) -> None:
    running = replace(sample.record(), status="running", verdicts=())
    path = store.save(running, tmp_path)
    assert store.save(sample.record(), tmp_path) == path
    assert store.load(path).status == "complete"
    store.save(sample.record(), tmp_path)  # the same again is no change
    before = path.read_bytes()
    with pytest.raises(RecordError, match="never overwritten"):
        store.save(running, tmp_path)
    assert path.read_bytes() == before


def test_a_damaged_file_in_the_way_is_kept(tmp_path: Path) -> None:
    for text in ("{half", "{other"):
        (tmp_path / "empty.json").write_text(text)
        store.save(sample.empty(), tmp_path)
    assert (tmp_path / "empty.damaged-1.json").read_text() == "{half"
    assert (tmp_path / "empty.damaged-2.json").read_text() == "{other"
    assert store.load(tmp_path / "empty.json") == sample.empty()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a\n", "x" * 200])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordError, match="file name"):
        store.save(replace(sample.empty(), id=name), tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.save(replace(sample.empty(), status="running"), tmp_path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        store.save(sample.record(), tmp_path)
    with pytest.raises(OSError, match="disk full"):
        store.save(replace(sample.empty(), status="complete"), tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_history_is_in_order_and_names_the_damaged(tmp_path: Path) -> None:
    for name in ("20260103T000000Z-c", "20260101T000000Z-a", "20260102T000000Z-b"):
        store.save(replace(sample.empty(), id=name), tmp_path)
    bad = tmp_path / "20260104T000000Z-d.json"
    bad.write_text('{"format": 1, "measurements"')
    found = store.history(tmp_path)
    assert [record.id[-1] for record in found.records] == ["a", "b", "c"]
    assert [damaged.path for damaged in found.damaged] == [bad]
    assert "cut off" in found.damaged[0].reason
    assert bad.exists()
    assert store.history(tmp_path / "none") == store.History((), ())


def test_latest_by_job_and_status(tmp_path: Path) -> None:
    rows = [("1", "a", "complete"), ("2", "a", "interrupted"), ("3", "b", "complete")]
    for name, key, status in rows:
        store.save(replace(sample.empty(), id=name, job_key=key, status=status), tmp_path)

    def found(job_key: str = "", status: str = "") -> str | None:
        record = store.latest(tmp_path, job_key, status)
        return record.id if record else None

    assert found() == "3"
    assert found("a") == "2"
    assert found("a", "complete") == "1"
    assert found("c") is None


def damaged(**changes: object) -> str:
    return json.dumps({**json.loads(sample.record().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "no record"),
        ('{"format": 1}', "no record"),
        (damaged(format=2), "newer than this program"),
        (damaged(format=0), "older than any"),
        (damaged(format="1"), "no number"),
        (damaged(format=True), "no number"),
        (damaged(measurements=None), "record.measurements: None is no array"),
        (damaged(measurements=[1]), r"record.measurements\[0\]: 1 is no object"),
        (damaged(id=5), "record.id: 5 is no string"),
        (damaged(verdicts=[{"outcome": "maybe"}]), "'suite' is missing"),
    ],
)
def test_what_is_no_record_is_said_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=words) as caught:
        store.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file"):
        store.load(tmp_path / "none.json")
    with pytest.raises(RecordError, match="cannot be read"):
        store.load(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(RecordError, match="cannot be read"):
        store.load(tmp_path / "bytes.json")


def test_migrations_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store.MIGRATIONS, -1, lambda data: data | {"id": data["id"] + "-older"})
    monkeypatch.setitem(store.MIGRATIONS, 0, lambda data: data | {"id": data["id"] + "-old"})
    assert store.parse(damaged(format=-1, id="x")).id == "x-older-old"


def test_ids_sort_by_time() -> None:
    ids = [store.new_id(datetime(2026, 1, day, tzinfo=UTC)) for day in (1, 2, 3)]
    assert ids == sorted(ids)
    assert store.new_id() != store.new_id()


def test_from_json_alone_refuses_too() -> None:
    for text in ("{", "[]", damaged(format=7), damaged(measurements=[1]), damaged(subjects=5)):
        with pytest.raises(RecordError):
            Record.from_json(text)
