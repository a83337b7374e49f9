"""The figures are those of lm-eval's own run on the same responses."""

import random

import pytest
from tests.test_verifiers import DRAWN

from misotune.evaluation.constrained import read_jsonl
from misotune.evaluation.ifeval import VerifierScoring
from misotune.evaluation.responses import read_responses
from misotune.evaluation.task import Sample
from misotune.evaluation.tasks import TaskOptions, load_task
from misotune.verifiers import SEED


@pytest.mark.slow
def test_gpt4_scores_as_in_lm_evals_own_run(shared_data, punkt, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from langdetect import DetectorFactory
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks.ifeval import utils

    folder = shared_data / "ifeval"
    task = load_task("ifeval", TaskOptions(data=folder / "input_data.jsonl", offline=True))
    texts, _ = read_responses(folder / "input_response_data_gpt4_20231107_145030.jsonl", task.prompts, task.all_prompts)
    answers = {prompt.key: text for prompt, text in zip(task.prompts, texts, strict=True)}
    rows = [row for _, row in read_jsonl(folder / "input_data.jsonl")]

    class Recorded(LM):
        def generate_until(self, requests, disable_tqdm=False):
            return [answers[request.doc["key"]] for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

    class Local(ConfigurableTask):
        def download(self, dataset_kwargs=None, **_):
            import datasets

            names = sorted({name for row in rows for entry in row["kwargs"] for name in entry})
            full = [{**row, "kwargs": [{n: e.get(n) for n in names} for e in row["kwargs"]]} for row in rows]
            self.dataset = datasets.DatasetDict(train=datasets.Dataset.from_list(full))

    def seeded(doc, results):
        random.seed(SEED)
        return utils.process_results(doc, results)

    config = {
        "task": "ifeval",
        "dataset_path": "local",
        "output_type": "generate_until",
        "test_split": "train",
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_target": 0,
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 1280},
        "process_results": seeded,
        "metric_list": [
            {"metric": "prompt_level_strict_acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "inst_level_strict_acc", "aggregation": utils.agg_inst_level_acc, "higher_is_better": True},
            {"metric": "prompt_level_loose_acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "inst_level_loose_acc", "aggregation": utils.agg_inst_level_acc, "higher_is_better": True},
        ],
    }
    monkeypatch.setattr(DetectorFactory, "seed", SEED)
    theirs = lm_eval.simple_evaluate(
        Recorded(), tasks=[Local(config=config)], bootstrap_iters=0, random_seed=SEED, log_samples=True
    )
    samples = VerifierScoring().score(task.prompts, texts)
    by_key = {sample["doc"]["key"]: sample for sample in theirs["samples"]["ifeval"]}
    assert len(samples) == len(by_key) == 541
    for sample in samples:
        # lm-eval's run draws once more or less before these; reported with the scores.
        for index in set(range(len(sample.found["strict"]))) - set(DRAWN.get(sample.key, ())):
            assert sample.found["strict"][index] == by_key[sample.key]["inst_level_strict_acc"][index], sample.key
            assert sample.found["loose"][index] == by_key[sample.key]["inst_level_loose_acc"][index], sample.key
    # The figures out of the same verdicts: ours of their samples.
    replaced = [
        Sample(
            sample.key,
            sample.prompt,
            sample.response,
            {
                **sample.found,
                "strict": by_key[sample.key]["inst_level_strict_acc"],
                "loose": by_key[sample.key]["inst_level_loose_acc"],
            },
        )
        for sample in samples
    ]
    ours = VerifierScoring().summarize(replaced).figures
    results = theirs["results"]["ifeval"]
    assert {name: pytest.approx(value) for name, value in ours.items()} == {
        name: results[f"{name},none"] for name in ours
    }
