"""The report: all that the run folder tells, self-contained, and never a reason for a run to fail."""

import json
import math
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from misotune.cli.main import main
from misotune.errors import UsageError
from misotune.report.chart import chart, ticks
from misotune.report.page import render_report, write_report
from misotune.report.reading import read_run
from misotune.report.series import MOST_POINTS, make_curve, smoothed
from misotune.runs import RunFolder

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RECIPE = """\
name: run        # recipe.yaml:1
model:
  name: tiny     # flag model.name=tiny
train:
  learning_rate: 1e-3  # default
"""
VOID = {"meta", "link", "br", "path", "circle", "rect"}


def make_line(step, loss=1.0, **changes):
    groups = {
        "source": {
            "crab": {"loss": loss + 0.1, "share": 0.75, "tokens": 30},
            "tulu": {"loss": loss - 0.3, "share": 0.25, "tokens": 10},
        }
    }
    return {
        "step": step,
        "num_steps": 40,
        "epoch": step / 40,
        "loss": loss,
        "learning_rate": 1e-3,
        "grad_norm": 1.5,
        "trained_tokens_per_s": 40.0,
        "total_tokens_per_s": 160.0,
        "peak_memory_gib": 2.5,
        "elapsed_s": 2.0 * step,
        "groups": groups,
    } | changes


@pytest.fixture
def run(tmp_path):
    """A run folder with twenty of forty steps, and a line that is just being written."""
    run = RunFolder(tmp_path / "runs" / "run")
    run.path.mkdir(parents=True)
    run.recipe.write_text(RECIPE)
    plan = {
        "name": "run",
        "model": "tiny",
        "steps": 40,
        "data": {"rows": 12, "samples": 11, "cut": 1, "dropped": {"too long": {"samples": 1, "first": "row-3"}}},
        "memory": {"components": {"weights": 2**30, "gradients": 2**30}, "total": 2**31, "limit": 2**33},
        "kernel": "flash (CPU)",
    }
    run.plan.write_text(json.dumps(plan))
    run.environment.write_text(json.dumps({"versions": {"torch": "2.13"}, "ranks": [{"host": "gpu1"}]}))
    run.metrics.write_text("".join(json.dumps(make_line(s, 4 / s)) + "\n" for s in range(1, 21)) + '{"step": 21, "lo')
    events = [("start", "40 steps"), ("warning", "a disk is slow"), ("save", "step-20")]
    run.events.write_text(
        "".join(json.dumps({"time": "2026-01-02T03:00:00+00:00", "kind": k, "text": t}) + "\n" for k, t in events)
    )
    return run


class Checker(HTMLParser):
    """Collects texts and addresses, and refuses tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.tags, self.addresses = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read_page(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.addresses == []
    assert not checker.tags & {"script", "link", "img", "iframe"}
    assert "url(" not in page
    assert "http://" not in page
    assert "https://" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)
        assert "nan" not in re.sub(r"<title>.*?</title>|<text.*?</text>|aria-label=\"[^\"]*\"", "", svg)
    return " ".join(" ".join(checker.texts).split())


def test_page_tells_everything_and_needs_nothing_from_outside(run):
    write_report(run, is_running=True)
    page = run.report.read_text()
    text = read_page(page)
    assert '<meta http-equiv="refresh" content="30">' in page
    for told in (
        "20 of 40",
        "recipe.yaml:1",
        "flag model.name=tiny",
        "learning_rate: 1e-3",
        "loss by source",
        "rows read 12",
        "1: too long (first: row row-3)",
        "planned in all 2.00 GiB",
        "measured peak 2.50 GiB, 125% of the plan",
        "a disk is slow",
        "versions torch 2.13",
        "ranks 0 host gpu1",
        "kernel flash (CPU)",
        "misotune train",
        "--resume",
    ):
        assert told in text, told
    assert "crab" in text
    assert "75.0%" in text
    # 20 lines of 2 s each, at 160 tokens a second.
    assert "about 6,400" in text
    assert "about 40 s left" in text


def test_texts_of_a_run_cannot_change_the_page(run):
    wicked = "<script>alert(1)</script>\"'&<svg onload=x>"
    run.recipe.write_text(f"name: run  # {wicked}\n")
    run.plan.write_text(json.dumps({"model": wicked, "data": {"dropped": {wicked: {"samples": 1, "first": wicked}}}}))
    run.environment.write_text(json.dumps({wicked: wicked}))
    line = make_line(1, groups={wicked: {wicked: {"loss": 1.0, "share": 1.0, "tokens": 3}}})
    run.metrics.write_text(json.dumps(line))
    run.events.write_text(json.dumps({"time": wicked, "kind": wicked, "text": wicked}))
    write_report(run)
    page = run.report.read_text()
    assert wicked in read_page(page)
    assert "<script" not in page
    assert "<svg onload" not in page


@pytest.mark.parametrize("num_lines", [0, 1, 2])
def test_page_of_the_first_steps(run, num_lines):
    run.metrics.write_text("".join(json.dumps(make_line(s)) + "\n" for s in range(1, num_lines + 1)))
    text = read_page(render_report(read_run(run), NOW))
    assert ("No step has ended yet." in text) == (num_lines == 0)
    assert ("Curves" in text) == (num_lines > 0)


def test_page_of_a_run_folder_with_nothing_but_a_recipe(tmp_path):
    run = RunFolder(tmp_path)
    run.recipe.write_text(RECIPE)
    text = read_page(render_report(read_run(run), NOW))
    assert "no end is recorded: it goes on, or was killed" in text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gone is not there; name a folder that misotune train wrote"):
        read_run(RunFolder(tmp_path / "gone"))
    with pytest.raises(UsageError, match="is not a run folder"):
        read_run(RunFolder(tmp_path))


def test_numbers_that_are_not_finite_are_marked_where_they_are(run):
    lines = [make_line(s, 2.0) for s in range(1, 19)] + [make_line(19, math.nan), make_line(20, math.inf)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = render_report(read_run(run), NOW)
    read_page(page)
    # In the charts of the loss and of the loss by source.
    assert re.findall(r"<title>step (\d+): not finite</title>", page) == ["19", "20"] * 2


def test_run_without_a_finite_number_has_a_page(run):
    run.metrics.write_text(json.dumps(make_line(1, math.nan, grad_norm=math.nan)) + "\n")
    assert "not finite" in read_page(render_report(read_run(run), NOW))


def test_states(run):
    def state():
        page = render_report(read_run(run), NOW)
        return re.search(r'class="state (\w+)"', page)[1], page

    assert state()[0] == "open"
    with run.events.open("a") as file:
        file.write(json.dumps({"time": "t", "kind": "stop", "text": "stopped by SIGTERM after step 20"}) + "\n")
    name, page = state()
    assert name == "stopped"
    assert "stopped by SIGTERM after step 20" in page
    with run.events.open("a") as file:
        file.write(json.dumps({"time": "t", "kind": "resume", "text": "goes on"}) + "\n")
    assert state()[0] == "open"
    run.final.mkdir()
    (run.final / "config.json").write_text("{}")
    name, page = state()
    assert name == "finished"
    assert "refresh" not in page
    assert "--resume" not in page


def test_time_of_a_resumed_run_counts_both_processes(run):
    lines = [make_line(1, elapsed_s=10.0), make_line(2, elapsed_s=30.0), make_line(3, elapsed_s=5.0)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_run(run)
    assert record.step_seconds == [10.0, 20.0, 5.0]
    assert record.seconds == 35.0


def test_fifty_thousand_lines_make_a_page_that_opens(run):
    with run.metrics.open("w") as file:
        for step in range(1, 50_001):
            file.write(json.dumps(make_line(step, 2 + math.sin(step), num_steps=50_000)) + "\n")
    page = render_report(read_run(run), NOW)
    read_page(page)
    assert len(page) < 400_000


def test_curve_keeps_the_spread_of_what_it_joins():
    values = [float(i % 10) for i in range(10_000)]
    curve = make_curve("x", range(10_000), values)
    assert len(curve.points) <= MOST_POINTS
    assert {(point.low, point.high) for point in curve.points} == {(0.0, 9.0)}
    assert curve.last == pytest.approx(4.5, abs=0.1)
    assert curve.points[-1].step == 9999


def test_smooth_line_of_a_constant_is_that_constant():
    assert [value for _, value in smoothed([(i, 3.0) for i in range(50)], 10)] == pytest.approx([3.0] * 50)


def test_spike_does_not_press_the_curve_flat():
    values = [1.0 + 0.01 * (i % 7) for i in range(1000)]
    values[500] = 1e6
    picture = chart("loss", [make_curve("loss", range(1000), values, is_smooth=False)])
    labels = re.findall(r'text-anchor="end">([\d.,e+]+)</text>', picture)
    assert picture.count("<svg") == 1
    assert len(labels) > 2
    assert all(0.9 < float(label) < 1.2 for label in labels)


@pytest.mark.parametrize(("low", "high"), [(0, 1e-6), (-3, 7), (1e5, 1.00001e5), (0.001, 9999)])
def test_ticks_are_inside_and_few(low, high):
    found = ticks(low, high, 4)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)


def test_command_writes_the_page_again(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(run.path)])
    assert not stopped.value.code
    assert f"page: {run.report}" in capsys.readouterr().out
    assert "20 of 40" in read_page(run.report.read_text())
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(run.path / "nowhere")])
    assert stopped.value.code == 2
