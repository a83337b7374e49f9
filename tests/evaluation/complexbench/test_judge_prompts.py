"""The judge's prompts come from the user's copy of the repository, which is read and never run."""

import hashlib

import pytest

from misotune.errors import DataError, UsageError
from misotune.evaluation.complexbench.judge_prompts import find_prompts, read_prompts


def test_prompts_are_found_where_the_repository_has_them(repository):
    assert find_prompts(repository / "data" / "data_final.json", None) == repository / "evaluation" / "prompts"


def test_prompts_are_found_beside_the_data_and_where_they_are_named(repository, tmp_path):
    prompts = repository / "evaluation" / "prompts"
    assert find_prompts(prompts / "data.json", None) == prompts
    assert find_prompts(tmp_path / "data.json", prompts) == prompts


def test_without_prompts_the_error_says_where_to_get_them(tmp_path):
    with pytest.raises(UsageError, match="git clone https://github"):
        find_prompts(tmp_path / "data.json", None)
    with pytest.raises(UsageError, match="nowhere"):
        find_prompts(tmp_path / "data.json", tmp_path / "nowhere")


def test_a_prompt_shows_the_judge_no_more_than_the_published_code_does(repository):
    prompts = read_prompts(repository / "evaluation" / "prompts")
    instruction, response = "指" * 7000, "回" * 5000
    verdict = "\nVERDICT\n" + "指" * 6000 + "\n---\n" + "回" * 4000 + "\n---\n问\n"
    assert prompts.ask_verdict(instruction, response, "问") == verdict
    part = "PART\n" + "指" * 6000 + "\n---\n" + "回" * 4000 + "\n---\n问"
    assert prompts.ask_parts(instruction, response, "问", many=False) == part
    assert prompts.ask_parts("指{}", "{回}", "问", many=True) == "PARTS {}\n指{}\n---\n{回}\n---\n问"


def test_the_hashes_are_those_of_the_texts(repository):
    prompts = read_prompts(repository / "evaluation" / "prompts")
    assert prompts.sha256["EVALUATION_PROMPT"] == hashlib.sha256(prompts.evaluation.encode()).hexdigest()
    assert list(prompts.sha256) == ["EVALUATION_PROMPT", "EXTRACTION_PROMPT", "EXTRACTION_PROMPT_EACH"]


def test_the_files_are_not_run(repository, tmp_path):
    path = repository / "evaluation" / "prompts" / "RAL_evaluator.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + path.read_text(), encoding="utf-8")
    read_prompts(path.parent)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("RAL_evaluator.py", "OTHER = 'x'", "RAL_evaluator.py: no text EVALUATION_PROMPT"),
        ("RAL_evaluator.py", "EVALUATION_PROMPT = (", "not the Python file"),
        ("RAL_evaluator.py", "EVALUATION_PROMPT = '{input} {question}'", "has the places"),
        ("RAL_evaluator.py", "EVALUATION_PROMPT = '{input} {'", "is no template"),
        ("RAL_extractor.py", "EXTRACTION_PROMPT = '{instruction} {response} {question}'", "no text .*_EACH"),
    ],
)  # fmt: skip
def test_files_that_are_not_as_published_are_refused(repository, name, content, said):
    folder = repository / "evaluation" / "prompts"
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_prompts(folder)
