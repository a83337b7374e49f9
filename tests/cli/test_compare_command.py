import json

import pytest
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.errors import UsageError


def row(key, strict, response):
    return {
        "key": key, "prompt": f"Name fruit [number] {key}", "response": response,
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"][: len(strict)],
        "strict": strict, "loose": strict,
    }  # fmt: skip


@pytest.fixture
def misotune_compare(tmp_path, monkeypatch):
    """Runs `misotune compare` beside the runs `base` and `tuned`; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("base", "tuned"):
        folder = tmp_path / "runs" / name / "scores" / "ifeval"
        folder.mkdir(parents=True)
        scores = {"format": 2, "task": "ifeval", "model": f"runs/{name}", "prompts_sha256": "0" * 64}
        (folder / "scores.json").write_text(json.dumps(scores))
        passes = [name == "tuned" or key >= 10 for key in range(40)]
        rows = [row(k, [met, True][: 1 + k % 2], f"[red]{name}[/red] " + "word " * 200) for k, met in enumerate(passes)]
        (folder / "samples.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))

    def run(*arguments):
        return CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)

    return run


def test_two_runs_are_compared_in_tables_with_a_verdict(misotune_compare):
    result = misotune_compare("runs/base", "runs/tuned")
    assert result.exit_code == 0, result.output
    out = result.stdout
    assert "ifeval, 40 prompts: A: base and B: tuned" in out
    lines = [line.split() for line in out.splitlines()]
    assert lines[2][:6] == ["prompt", "strict", "40", "75.0", "100.0", "+25.0"]
    assert lines[2][-4:] == ["0.002", "B", "is", "better"]
    assert "instruction strict by type; p corrected for 2 lines (Holm); 1 with no difference left out" in out
    assert "B is better: prompt strict 75.0 % in A, 100.0 % in B, +25.0 points (95 % interval" in out
    assert "prompt strict: B higher on 10 and lower on 0 of 40 prompts" in out
    assert "comparing A and B: 40 prompts" in result.stderr
    assert "Name fruit" not in out


def test_clusters_are_noted(misotune_compare, tmp_path):
    for name in ("base", "tuned"):
        file = tmp_path / "runs" / name / "scores" / "ifeval" / "samples.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**entry, "cluster": entry["key"] % 8}) + "\n" for entry in rows))
    out = misotune_compare("runs/base", "runs/tuned").stdout
    assert "note: the 40 prompts make up 8 clusters that share a text; intervals, noise and tests take each" in out


def test_show_prints_so_many_wins_with_both_texts_as_they_are(misotune_compare):
    out = misotune_compare("runs/base", "runs/tuned", "--show", 2).stdout
    assert out.count("B higher: key") == 2
    assert "prompt: Name fruit [number] 0" in out
    assert "A: [red]base[/red] word" in out
    assert "B: [red]tuned[/red] word" in out
    assert "…" in out
    assert "A higher" not in out


def test_json_is_all_that_stands_on_standard_output(misotune_compare, tmp_path):
    result = misotune_compare("runs/base/scores/ifeval", "runs/tuned", "--json", "--out", "found")
    content = json.loads(result.stdout)
    assert content["pairs"][0]["verdict"] == "B is better"
    assert content["pairs"][0]["wins"] == [str(key) for key in range(10)]
    assert content.pop("folder") == "found"
    assert json.loads((tmp_path / "found" / "comparison.json").read_text()) == content


def test_out_writes_the_page_and_names_it(misotune_compare, tmp_path):
    result = misotune_compare("runs/base", "runs/tuned", "runs/base", "--out", "found")
    assert result.stdout.splitlines()[-1] == "page: found/comparison.html"
    assert "C against A" in (tmp_path / "found" / "comparison.html").read_text()
    assert "within the noise" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/base"], "compare takes 2 to 26 results"),
        (["runs/base", "runs/none"], "runs/none: no such folder"),
        (["runs/base", "runs/tuned", "--task", "drop"], "no result of task 'drop'"),
        (["runs/base", "runs/tuned", "--out", "runs"], "runs: holds files that are no comparison"),
    ],
)
def test_a_wrong_command_is_refused(misotune_compare, arguments, message):
    with pytest.raises(UsageError, match=message):
        misotune_compare(*arguments)
