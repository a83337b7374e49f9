"""Python and the packages: versions against the ranges that the installed misotune declares, and imports."""

import platform
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from misotune.doctor.asking import Answer
from misotune.doctor.finding import Finding, pip_install
from misotune.packages import installed_version

PURPOSES = {
    "torch": "training, evaluation, generation",
    "transformers": "models and tokenizers",
    "peft": "LoRA",
    "deepspeed": "ZeRO and offload (the recipe's section deepspeed)",
    "datasets": "data sets of the hub",
    "accelerate": "training",
    "lm-eval": "IFEval's verifiers: eval, prepare backtranslate",
}
"""The packages that get a line of their own; what the others are for is said where one of them is at fault."""

_OTHER_PURPOSES = {
    "filelock": "the cache of encoded data",
    "gguf": "the quickstart's model where no hub is reached",
    "matplotlib": "pictures",
    "py3langid": "languages in prepare",
    "pyarrow": "Parquet files",
    "pydantic": "recipes",
    "pyyaml": "recipes",
    "rensa": "near-duplicates in prepare",
    "safetensors": "checkpoints",
}

_GROUP = "packages"


@dataclass(frozen=True, slots=True)
class Feature:
    """A package that one feature needs, and its extra of misotune; None: it has none."""

    purpose: str
    extra: str | None = None
    needs_gpu: bool = False
    install: str | None = None


OPTIONAL = {
    "openai": Feature("asking a server: prepare --decompose llm, eval --endpoint", "llm"),
    "bitsandbytes": Feature("QLoRA: lora.quantization=nf4 or int8", "qlora"),
    "liger-kernel": Feature("train.liger_kernels=true, train.cross_entropy=liger", "liger", needs_gpu=True),
    "tensorboard": Feature("train.report_to=[tensorboard]"),
    "wandb": Feature("train.report_to=[wandb]"),
    "trackio": Feature("train.report_to=[trackio]"),
    "fastapi": Feature("transformers serve: ask an exported model over HTTP", install="transformers[serving]"),
}


@dataclass(frozen=True, slots=True)
class Declared:
    """What the installed misotune declares.

    Attributes:
        python: The range of Python.
        requirements: By package, those that hold on this machine.
        optional: Likewise, those of its extras.
        extras: The names of its extras.
    """

    python: str
    requirements: Mapping[str, Any]
    optional: Mapping[str, Any]
    extras: Sequence[str]


def read_declared() -> Declared | None:
    """Returns what the installed package's metadata declare; None: misotune runs from a source tree alone.

    Raises:
        ImportError: The package `packaging`, which reads them, is missing.
    """
    from packaging.requirements import Requirement

    try:
        about = metadata.metadata("misotune")
    except metadata.PackageNotFoundError:
        return None
    extras: list[str] = about.get_all("Provides-Extra") or []
    requirements: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for text in about.get_all("Requires-Dist") or []:
        one = Requirement(text)
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            requirements[one.name] = one
        elif any(one.marker.evaluate({"extra": extra}) for extra in extras):
            optional[one.name] = one
    return Declared(about["Requires-Python"] or "", requirements, optional, extras)


def names_to_import(declared: Declared | None) -> list[str]:
    """Returns the packages that are to be imported, if they are installed: needed ones, then optional ones."""
    needed = list(declared.requirements if declared else PURPOSES)
    return [name for name in [*needed, *OPTIONAL] if installed_version(name) is not None]


def examine_installation(declared: Declared | None) -> list[Finding]:
    """Returns what is to be said of Python, the operating system and misotune itself."""
    return [_python(declared), _system(), *_misotune(declared)]


def examine_packages(declared: Declared | None, answers: Mapping[str, Answer]) -> list[Finding]:
    """Returns a finding for each important package and each one at fault, and one for all the others."""
    needed = declared.requirements if declared else dict.fromkeys(PURPOSES)
    found = {name: _needed(name, requirement, answers) for name, requirement in needed.items()}
    shown = [found[name] for name in PURPOSES if name in found]
    shown += [finding for name, finding in found.items() if name not in PURPOSES and finding.is_bad]
    quiet = sorted(name for name, finding in found.items() if name not in PURPOSES and not finding.is_bad)
    if quiet:
        detail = f"{len(quiet)} in their ranges: {', '.join(quiet)}"
        shown.append(Finding(_GROUP, "others", "ok", detail, "all commands", is_required=True))
    return shown


def examine_optional(declared: Declared | None, answers: Mapping[str, Answer], *, has_gpu: bool) -> list[Finding]:
    """Returns a finding for each package that only one feature needs."""
    return [
        _optional(name, option, declared, answers, has_gpu=has_gpu or not option.needs_gpu)
        for name, option in OPTIONAL.items()
    ]


def _python(declared: Declared | None) -> Finding:
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    wanted = declared.python if declared else ""
    detail = f"{version} at {sys.executable}" + (f" (needs {wanted})" if wanted else "")
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("environment", "Python", "ok", detail, "all commands", is_required=True)
    cure = f"uv venv --python 3.11 && uv pip install {shlex.quote(str(_source_root() or 'misotune'))}"
    return Finding("environment", "Python", "problem", detail, "all commands", cure, is_required=True)


def _system() -> Finding:
    detail = platform.platform(terse=False)
    if sys.platform == "linux":
        return Finding("environment", "system", "ok", detail, "all commands")
    detail += "; DeepSpeed and training on several GPUs are for Linux"
    return Finding("environment", "system", "ok", detail, "all commands")


def _misotune(declared: Declared | None) -> list[Finding]:
    place = Path(__file__).parents[1]
    root = _source_root()
    install = pip_install("-e", str(root)) if root else pip_install("misotune")
    purpose = "knowing what misotune needs"
    if declared is None:
        detail = f"runs from {place} and is not installed: no ranges to compare with"
        return [Finding("environment", "misotune", "problem", detail, purpose, install)]
    version = f"{metadata.version('misotune')} at {place}"
    if root is not None and (changed := _undeclared(root, declared)):
        detail = f"{version}; {', '.join(changed)} in its pyproject.toml are not what was installed"
        return [Finding("environment", "misotune", "problem", detail, purpose, install)]
    return [Finding("environment", "misotune", "ok", version, "all commands")]


def _source_root() -> Path | None:
    """Returns the checkout that misotune runs from; None: it runs from an installed wheel."""
    root = Path(__file__).parents[3]
    return root if (root / "pyproject.toml").is_file() else None


def _undeclared(root: Path, declared: Declared) -> list[str]:
    """Returns the dependencies of a checkout's pyproject.toml that the installed metadata do not have."""
    from packaging.requirements import Requirement

    content = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [Requirement(text) for text in content.get("project", {}).get("dependencies", [])]
    known = declared.requirements
    here = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [one.name for one in here if one.name not in known or known[one.name].specifier != one.specifier]


def _needed(name: str, requirement: Any, answers: Mapping[str, Answer]) -> Finding:
    purpose = PURPOSES.get(name) or _OTHER_PURPOSES.get(name, "all commands")
    state, detail, cure = _state(name, requirement, pip_install(_text(name, requirement)), answers)
    return Finding(_GROUP, name, state, detail, purpose, cure, is_required=True)


def _optional(
    name: str, option: Feature, declared: Declared | None, answers: Mapping[str, Answer], *, has_gpu: bool
) -> Finding:
    requirement = declared.optional.get(name) if declared else None
    has_extra = declared is not None and option.extra in declared.extras
    what = f"misotune[{option.extra}]" if has_extra else option.install or _text(name, requirement)
    state, detail, cure = _state(name, requirement, pip_install(what), answers)
    if not has_gpu:
        detail, cure = f"{detail}; of use on CUDA only, which is not here", None
        state = "skipped" if state == "missing" else state
    return Finding("optional", name, state, detail, option.purpose, cure)


def _state(name: str, requirement: Any, install: str, answers: Mapping[str, Answer]) -> tuple[Any, str, str | None]:
    """Returns the state of a package, what was found, and the cure."""
    version = installed_version(name)
    wanted = str(requirement.specifier) if requirement is not None else ""
    needs = f" (needs {wanted})" if wanted else ""
    if version is None:
        return "missing", f"not installed{needs}", install
    if requirement is not None and not requirement.specifier.contains(version, prereleases=True):
        return "problem", f"{version} is out of range{needs}", install
    answer = answers.get(name, Answer())
    if answer.error is None:
        return "ok", f"{version}{needs}", None
    culprit = (answer.culprit or "").replace("_", "-")
    if culprit in PURPOSES and culprit != name:
        install = f"mend {culprit} first, then: misotune doctor"
    elif not answer.is_missing:  # what it depends on is here, so the package's own files are at fault
        install = pip_install("--force-reinstall", "--no-deps", f"{name}=={version.partition('+')[0]}")
    return "problem", f"{version} cannot be imported: {answer.error}", install


def _text(name: str, requirement: Any) -> str:
    """Returns a requirement as pip takes it, without its marker."""
    if requirement is None:
        return name
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{name}{extras}{requirement.specifier}"
