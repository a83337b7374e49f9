"""A copy of the ComplexBench repository in small: the published example instance, and stand-ins for the prompts."""

import gzip
import json

import pytest

# The published prompts are not in this repository; these have their places, and one escaped brace as they have.
EVALUATOR = 'EVALUATION_PROMPT = """\nVERDICT\n{input}\n---\n{output}\n---\n{question}\n"""\n'
EXTRACTOR = (
    'EXTRACTION_PROMPT = """PART\n{instruction}\n---\n{response}\n---\n{question}"""\n\n\n'
    'EXTRACTION_PROMPT_EACH = """PARTS {{}}\n{instruction}\n---\n{response}\n---\n{question}"""\n'
)


@pytest.fixture
def repository(tmp_path):
    """A folder with the judge's prompts where the repository has them, and no data yet."""
    folder = tmp_path / "ComplexBench"
    (folder / "data").mkdir(parents=True)
    (folder / "evaluation" / "prompts").mkdir(parents=True)
    (folder / "evaluation" / "prompts" / "RAL_evaluator.py").write_text(EVALUATOR, encoding="utf-8")
    (folder / "evaluation" / "prompts" / "RAL_extractor.py").write_text(EXTRACTOR, encoding="utf-8")
    return folder


@pytest.fixture
def write_data(repository):
    """Writes rows as the repository's data file, and returns its path."""

    def write(rows):
        path = repository / "data" / "data_final.json"
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def example(shared_data):
    """The published example instance, main_id 899."""
    return json.loads((shared_data / "complexbench" / "example_instance.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def responses(shared_data):
    """The published responses to that instance, by model."""
    found = {}
    for model in ("gpt4_1106", "qwen1.5_7b"):
        with gzip.open(shared_data / "complexbench" / f"{model}.jsonl.gz", "rt", encoding="utf-8") as file:
            found[model] = next(row["generated"] for row in map(json.loads, file) if row["main_id"] == 899)
    return found


def row(main_id=0, num_questions=2, **fields):
    """A row of the data file whose questions the judge decides."""
    question = {"rule": None, "constraint_dimensions": ["Topic"], "composition_types": [], "dep": []}
    return {
        "main_id": main_id,
        "group": None,
        "instruction": f"指令{main_id}",
        "instruction_en": f"Instruction {main_id}",
        "task_types": "Creative Writing",
        "composition_types": ["And"],
        "category": "And",
        "scoring_questions": [
            {"point_id": n, "question": f"问题{main_id}.{n}", "question_en": f"Question {main_id}.{n}", **question}
            for n in range(num_questions)
        ],
        **fields,
    }


@pytest.fixture
def make_row():
    return row
