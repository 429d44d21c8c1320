"""Many stages in one process: nothing of one is left when the next begins."""

from __future__ import annotations

import re

import pytest

from tests.faults import soak


@pytest.mark.slow
def test_a_soak_is_flat(tmp_path):
    """A few of the stages of `make soak`, which does two hundred: two sets of programs are compiled and dropped."""
    samples = soak.soak(8, tmp_path)
    assert len(samples) == 9
    first, last = samples[4], samples[-1]
    assert last.handles <= first.handles and last.threads <= first.threads, samples


def test_the_tables_are_written_between_their_marks(tmp_path, monkeypatch):
    samples = [soak.Sample(100 + n / 10, 12, 3) for n in range(41)]
    assert soak.growth(samples) == pytest.approx(0.1)
    text = soak.soak_text(samples, "a command")
    assert "| 37 to 40 | 104 | 12 | 3 |" in text and "grew by 100 kB a stage" in text and "n = 40 stages" in text
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- soak -->\nold\n<!-- end -->\nafter\n<!-- plan -->\n<!-- end -->\n")
    monkeypatch.setattr(soak, "PAGE", page)
    soak.write("soak", text)
    soak.write("plan", soak.plan_text([soak.Plan("none there", 1.5, 1.25, 2.0)], 10_000, "b"))
    written = page.read_text()
    assert "old" not in written and text in written and re.search(r"\| none there \| 1\.5 \| 1\.2 \| 2 \|", written)
    assert written.startswith("before\n<!-- soak -->\n`a command`") and "10,000 stages planned and shown" in written
