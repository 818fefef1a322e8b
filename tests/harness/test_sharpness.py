"""What the README says of the two profiles, on a trained model: three mistakes that the published thresholds pass."""

from pathlib import Path

import pytest

from reports.record import Outcome
from tests.harness.conftest import Command

TINY = Path(__file__).parents[3] / "shared" / "models" / "tiny-rwkv-7v0-834K.pth"
MISTAKES = ("fault:bonus-missing", "fault:k-not-modified", "fault:edge-shift")


@pytest.mark.skipif(not TINY.exists(), reason="the trained tiny checkpoint is not beside this checkout")
def test_three_mistakes_pass_the_published_thresholds_and_none_passes_ours(command: Command) -> None:
    subjects = [word for mistake in MISTAKES for word in ("--backend", mistake)]
    arguments = ("validate", "--model", str(TINY), *subjects, "--honest-runs", "2", "--no-diagnosis", "--suite")
    seed = command(*arguments, "logits", "--profile", "seed")
    assert seed.code == 0
    assert seed.record.counts() == {"pass": 3 * 18 * 3, "fail": 0, "skipped": 0, "unsupported": 0, "error": 0}
    strict = command(*arguments, "consistency,distribution")
    assert strict.code == 1
    assert {v.subject for v in strict.record.verdicts if v.outcome is Outcome.FAIL} == set(MISTAKES)
