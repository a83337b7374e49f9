"""Versions against what the installed package declares, and the command that mends each fault."""

import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from misotune.doctor import packages
from misotune.doctor.asking import Answer
from misotune.doctor.probe import MODULES

ROOT = Path(__file__).parents[2]
METADATA = """\
Metadata-Version: 2.4
Name: misotune
Version: 9.1
Requires-Python: >=3.11
Provides-Extra: llm
Requires-Dist: torch>=2.10
Requires-Dist: peft>=0.17
Requires-Dist: lm-eval[ifeval]<0.5,>=0.4.9
Requires-Dist: rensa<0.6,>=0.5
Requires-Dist: gguf>=0.10
Requires-Dist: deepspeed>=0.18; platform_system == 'Plan9'
Requires-Dist: openai>=3; extra == 'llm'
"""
VERSIONS = {"torch": "2.13.0+cpu", "peft": "0.20", "lm-eval": "0.4.13", "rensa": "0.5.1", "gguf": "0.19", "openai": "3"}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Stands for the installed packages: a function that changes some of their versions; None: not installed."""

    def install(**changes):
        for name, version in (VERSIONS | {key.replace("_", "-"): value for key, value in changes.items()}).items():
            folder = tmp_path / f"{name.replace('-', '_')}-0.dist-info"
            folder.mkdir(exist_ok=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
            if version is None:
                (folder / "METADATA").unlink()
                folder.rmdir()
        folder = tmp_path / "misotune-9.1.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(METADATA)
        return packages.read_declared()

    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr(packages, "pip_install", lambda *words: "pip install " + " ".join(words))
    return install


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_only_what_holds_here_is_needed(installed):
    declared = installed()
    assert set(declared.requirements) == {"torch", "peft", "lm-eval", "rensa", "gguf"}
    assert set(declared.optional) == {"openai"}


def test_packages_in_range_are_fine_and_the_lesser_ones_share_a_line(installed):
    found = by_name(packages.examine_packages(installed(), {}))
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["torch"].detail == "2.13.0+cpu (needs >=2.10)"
    assert found["others"].detail == "2 in their ranges: gguf, rensa"


@pytest.mark.parametrize(
    ("name", "version", "state", "cure"),
    [
        ("torch", "2.9.1", "problem", "pip install torch>=2.10"),
        ("lm_eval", "0.5.0", "problem", "pip install lm-eval[ifeval]<0.5,>=0.4.9"),
        ("rensa", None, "missing", "pip install rensa<0.6,>=0.5"),
    ],
)
def test_a_package_out_of_range_or_missing_is_fatal_with_its_command(installed, name, version, state, cure):
    found = by_name(packages.examine_packages(installed(**{name: version}), {}))
    finding = found[name.replace("_", "-")]
    assert (finding.state, finding.cure, finding.is_fatal) == (state, cure, True)
    assert [one for one in found.values() if one.is_fatal] == [finding]


@pytest.mark.parametrize(
    ("answer", "cure"),
    [
        (Answer(error="OSError: bad ELF", culprit="peft"), "pip install --force-reinstall --no-deps peft==0.20"),
        (Answer(error="died of SIGSEGV"), "pip install --force-reinstall --no-deps peft==0.20"),
        (Answer(error="No module named 'psutil'", is_missing=True, culprit="psutil"), "pip install peft>=0.17"),
        (Answer(error="OSError: libcudart", culprit="torch"), "mend torch first, then: misotune doctor"),
    ],
)
def test_a_package_that_cannot_be_imported_is_fatal_and_the_cure_fits_the_cause(installed, answer, cure):
    found = by_name(packages.examine_packages(installed(), {"peft": answer}))
    assert found["peft"].is_fatal
    assert found["peft"].detail == f"0.20 cannot be imported: {answer.error}"
    assert found["peft"].cure == cure


def test_optional_packages_are_installed_by_their_extra_and_never_fatal(installed):
    declared = installed(openai=None)
    found = by_name(packages.examine_optional(declared, {}, has_gpu=False))
    assert found["openai"].cure == "pip install misotune[llm]"
    assert found["bitsandbytes"].cure == "pip install bitsandbytes"  # this metadata have no such extra
    assert found["fastapi"].cure == "pip install transformers[serving]"
    assert (found["liger-kernel"].state, found["liger-kernel"].cure) == ("skipped", None)
    assert by_name(packages.examine_optional(declared, {}, has_gpu=True))["liger-kernel"].state == "missing"
    assert not any(finding.is_fatal for finding in found.values())


def test_an_optional_package_out_of_its_extras_range_is_a_problem(installed):
    found = by_name(packages.examine_optional(installed(openai="2.9"), {}, has_gpu=False))
    assert (found["openai"].state, found["openai"].detail) == ("problem", "2.9 is out of range (needs >=3)")


def test_metadata_older_than_the_checkout_are_named_with_the_command(installed):
    declared = installed()
    finding = by_name(packages.examine_installation(declared))["misotune"]
    assert finding.state == "problem"
    assert "transformers" in finding.detail  # the checkout declares it, this metadata do not
    assert finding.cure == f"pip install -e {ROOT}"


def test_without_installation_the_source_tree_is_named(monkeypatch, tmp_path):
    pytest.importorskip("packaging.markers")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert packages.read_declared() is None
    assert by_name(packages.examine_installation(None))["misotune"].state == "problem"
    assert by_name(packages.examine_packages(None, {}))["torch"].state == "missing"


def test_a_python_out_of_range_is_fatal(installed, monkeypatch):
    declared = installed()
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.10.14")
    finding = by_name(packages.examine_installation(declared))["Python"]
    assert finding.is_fatal
    assert "needs >=3.11" in finding.detail


def test_every_declared_package_has_a_module_of_the_name_that_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [Requirement(text).name for text in project["dependencies"]]
    missing = [name for name in names if find_spec(MODULES.get(name, name.replace("-", "_"))) is None]
    assert not missing
    assert set(packages.PURPOSES) <= set(names)
    assert {feature.extra for feature in packages.OPTIONAL.values()} - {None} <= set(project["optional-dependencies"])
