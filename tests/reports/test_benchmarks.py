"""The page of timings in the documents: what the program writes from the records beside it, and nothing else."""

import shutil
from pathlib import Path

from reports import benchmarks, store

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def test_the_page_is_what_its_command_writes(tmp_path: Path) -> None:
    page = (FOLDER / benchmarks.PAGE).read_text(encoding="utf-8")
    command = page.split("```")[1].strip()
    folder = tmp_path / "benchmarks"
    shutil.copytree(FOLDER, folder)
    words = command.split()
    names = [Path(words[i + 1]).name for i, word in enumerate(words) if word == "--record"]
    files = [folder / "records" / name for name in names]
    written = benchmarks.write({file: store.load(file) for file in files}, folder, command)
    assert written[0].read_text(encoding="utf-8") == page, f"write it again: {command}"
    assert {path.name for path in written[1:]} == {path.name for path in (FOLDER / "plots").iterdir()}
    assert {path.name for path in files} == {path.name for path in (FOLDER / "records").iterdir()}
