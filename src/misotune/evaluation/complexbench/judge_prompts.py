"""The judge's three prompts, read from a copy of the ComplexBench repository.

They are part of the benchmark, as its data file is, and like it are not shipped with misotune. The two files are Python
and are only parsed, never run.
"""

import ast
import hashlib
import string
from dataclasses import dataclass, field
from pathlib import Path

from misotune.errors import DataError, UsageError

REPOSITORY = "https://github.com/thu-coai/ComplexBench"
_EVALUATOR = "RAL_evaluator.py"
_EXTRACTOR = "RAL_extractor.py"
_EXTRACTION_FIELDS = ("instruction", "response", "question")
# The published code cuts what it shows the judge.
_MAX_INSTRUCTION = 6000
_MAX_RESPONSE = 4000


@dataclass(frozen=True, slots=True)
class JudgePrompts:
    """What the judge is told.

    Attributes:
        folder: Where the prompts were found.
        evaluation: Asks for yes or no.
        extraction: Asks for the part of a response that a question is about.
        extraction_each: The same, for several parts.
        sha256: Of each prompt, by the name it has in the published files.
    """

    folder: Path
    evaluation: str
    extraction: str
    extraction_each: str
    sha256: dict[str, str] = field(hash=False)

    def ask_verdict(self, instruction: str, response: str, question: str) -> str:
        """Returns what to ask about a question without a rule."""
        return self.evaluation.format(
            input=instruction[:_MAX_INSTRUCTION], output=response[:_MAX_RESPONSE], question=question
        )

    def ask_parts(self, instruction: str, response: str, question: str, *, many: bool) -> str:
        """Returns what to ask about a question with a rule."""
        template = self.extraction_each if many else self.extraction
        return template.format(
            instruction=instruction[:_MAX_INSTRUCTION], response=response[:_MAX_RESPONSE], question=question
        )


def find_prompts(data: Path, folder: Path | None) -> Path:
    """Returns the folder of the judge's prompts: the one that is named, or the one that belongs to a data file.

    Args:
        data: The data file; in the repository it is `data/data_final.json`.
        folder: `evaluation/prompts` of the repository; None: look for it around the data file.

    Raises:
        UsageError: There is none.
    """
    around = data.absolute().parent
    tried = [folder] if folder is not None else [around.parent / "evaluation" / "prompts", around]
    for candidate in tried:
        if (candidate / _EVALUATOR).is_file() and (candidate / _EXTRACTOR).is_file():
            return candidate
    raise UsageError(
        f"no {_EVALUATOR} and {_EXTRACTOR} in {' or '.join(map(str, tried))}: the judge's prompts belong to the "
        f"benchmark; git clone {REPOSITORY}, and give the data/data_final.json in it, or its evaluation/prompts"
    )


def read_prompts(folder: Path) -> JudgePrompts:
    """Returns the prompts of a folder that `find_prompts` found.

    Raises:
        DataError: A file is not as published.
    """
    evaluator, extractor = _texts(folder / _EVALUATOR), _texts(folder / _EXTRACTOR)
    evaluation = _template(evaluator, "EVALUATION_PROMPT", ("input", "output", "question"), folder / _EVALUATOR)
    extraction = _template(extractor, "EXTRACTION_PROMPT", _EXTRACTION_FIELDS, folder / _EXTRACTOR)
    each = _template(extractor, "EXTRACTION_PROMPT_EACH", _EXTRACTION_FIELDS, folder / _EXTRACTOR)
    named = {"EVALUATION_PROMPT": evaluation, "EXTRACTION_PROMPT": extraction, "EXTRACTION_PROMPT_EACH": each}
    sha256 = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in named.items()}
    return JudgePrompts(folder, evaluation, extraction, each, sha256)


def _texts(path: Path) -> dict[str, str]:
    """Returns the texts that a Python file gives names to."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not the Python file of the ComplexBench repository: {error}") from error
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _template(texts: dict[str, str], name: str, fields: tuple[str, ...], path: Path) -> str:
    if name not in texts:
        raise DataError(f"{path}: no text {name}; take the file as it is in {REPOSITORY}")
    try:
        found = sorted({part for _, part, _, _ in string.Formatter().parse(texts[name]) if part is not None})
    except ValueError as error:
        raise DataError(f"{path}: {name} is no template: {error}") from error
    if found != sorted(fields):
        raise DataError(f"{path}: {name} has the places {found}, not {sorted(fields)}; take the file as published")
    return texts[name]
