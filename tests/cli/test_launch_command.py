import json

import pytest
from typer.testing import CliRunner

from misotune.cli.main import app
from misotune.errors import RunError, UsageError


@pytest.fixture
def launch_slurm(tmp_path, monkeypatch):
    """Runs `misotune launch slurm` in an empty folder; raises what the command raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, ["launch", "slurm", *arguments], catch_exceptions=False)


def test_the_script_has_the_recipes_name_and_the_next_command_is_told(launch_slurm, tmp_path):
    result = launch_slurm("quickstart", "--nodes", "2")
    assert result.stdout.startswith("written: quickstart.sbatch\nnext: ")
    assert result.stdout.endswith("then: sbatch quickstart.sbatch\n")
    assert "#SBATCH --nodes=2\n" in (tmp_path / "quickstart.sbatch").read_text()
    with pytest.raises(UsageError, match=r"quickstart\.sbatch is there already; --out FILE .*, --overwrite replaces"):
        launch_slurm("quickstart")
    assert launch_slurm("quickstart", "--overwrite").exit_code == 0


def test_json_tells_the_script_and_the_job(launch_slurm, tmp_path):
    arguments = (
        "name=other",
        "--nodes",
        "2",
        "--gpus-per-node",
        "4",
        "--time",
        "1-00:00:00",
        "--out",
        "job.sh",
        "--json",
    )
    result = launch_slurm("quickstart", *arguments)
    content = json.loads(result.stdout)
    assert result.stderr == ""
    assert (content["script"], content["name"], content["run_folder"]) == ("job.sh", "other", "runs/other")
    assert (content["nodes"], content["gpus_per_node"], content["num_processes"]) == (2, 4, 8)
    assert (content["recipe"], content["overrides"]) == ("quickstart", ["name=other"])
    assert (content["time_limit"], content["folder"]) == ("1-00:00:00", str(tmp_path))
    assert "#SBATCH --job-name=other\n" in (tmp_path / "job.sh").read_text()


def test_a_script_that_cannot_be_written_is_one_line(launch_slurm):
    with pytest.raises(RunError, match=r"nowhere/job\.sh cannot be written \(No such file or directory\)"):
        launch_slurm("quickstart", "--out", "nowhere/job.sh")
