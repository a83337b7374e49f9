"""What can go wrong in the study without anyone noticing: its split, its choice of a rate, its sums, its commands."""

import json
import shlex

import pytest

study = pytest.importorskip("benchmarks.study.__main__", reason="run from the repository")

import yaml  # noqa: E402
from benchmarks.study import rows, table  # noqa: E402
from benchmarks.study.driver import Study  # noqa: E402
from benchmarks.study.forms import FOLDER, FULL, PROBES, VARIANTS  # noqa: E402
from benchmarks.study.pieces import Training, read_scores, read_training  # noqa: E402
from benchmarks.study.responses import read_responses  # noqa: E402
from benchmarks.study.results import ResultFile, choose_rate, read_results  # noqa: E402
from benchmarks.study.together import seeds_together  # noqa: E402

MODEL = "SmolLM2-135M-Instruct"
RECIPES = (*VARIANTS, *PROBES)


def rate_record(rate, accuracy, variant="para", model=MODEL):
    scores = {"validation": {"figures": {"inst_level_strict_acc": accuracy}}}
    return {"kind": "rate", "model": model, "variant": variant, "learning_rate": rate, "scores": scores}


def test_the_best_rate_wins_and_of_equal_ones_the_smaller():
    records = [rate_record(2e-4, 0.5), rate_record(5e-5, 0.4), rate_record(1e-4, 0.5), rate_record(5e-5, 0.9, "sft")]
    assert choose_rate(records, MODEL, "para", (5e-5, 1e-4, 2e-4)) == 1e-4


def test_no_rate_is_chosen_before_all_were_tried():
    with pytest.raises(KeyError):
        choose_rate([rate_record(5e-5, 0.9)], MODEL, "para", (5e-5, 1e-4))


@pytest.fixture
def split_folder(tmp_path):
    """Two hundred verifiable rows, each task with two different constraints, of which the guards left out three."""
    verifiable = [
        {
            "id": f"{rows.VERIFIABLE[number % 2]}-{number}",
            "instruction": f"Write about {number // 2}. Use no {constraint}.",
            "constraints": [f"Use no {constraint}."],
            "output": "Something.",
            "task": f"Write about {number // 2}.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for number, constraint in zip(range(200), ["commas", "colons"] * 100, strict=True)
    ]
    rows.write_jsonl(tmp_path / "rows" / "verifiable.jsonl", verifiable)
    left_out = [{"id": verifiable[at]["id"], "kind": "overlap"} for at in range(3)]
    rows.write_jsonl(tmp_path / "prepared" / "dropped.jsonl", left_out)
    rows.split(tmp_path / "rows", tmp_path / "prepared")
    return tmp_path / "rows"


def test_training_and_validation_share_no_task_and_lose_no_row(split_folder):
    trained = [row for name in rows.VERIFIABLE for row in rows.read_jsonl(split_folder / f"{name}.jsonl")]
    held_out = list(rows.read_jsonl(split_folder / "validation.jsonl"))
    assert len(trained) + len(held_out) == 197
    assert 0 < len(held_out) < 60
    tasks = [
        {text.split(". ")[0] for text in texts}
        for texts in ([r["instruction"] for r in trained], [r["prompt"] for r in held_out])
    ]
    assert not tasks[0] & tasks[1]
    assert set(held_out[0]) == {"key", "prompt", "instruction_id_list", "kwargs"}


def test_the_split_depends_on_the_task_alone():
    # Fixed numbers: another hash would move rows between training and validation from one run to the next.
    assert rows.task_hash("Name a river.") == pytest.approx(0.5215805711530841)
    assert rows.task_hash("Name  a RIVER.\n") == rows.task_hash("name a river.")


def test_a_prefix_of_the_validation_rows_is_in_the_order_of_the_hash(split_folder):
    hashes = [
        rows.task_hash(row["prompt"].split(" Use")[0]) for row in rows.read_jsonl(split_folder / "validation.jsonl")
    ]
    assert hashes == sorted(hashes)


def test_rows_of_the_real_data_meet_every_constraint_and_are_short(shared_data):
    found = [row for name in rows.VERIFIABLE for row in rows.read_verifiable(shared_data, name, 4000)]
    assert len(found) == 1437
    assert max(rows.num_bytes(row["instruction"], row["output"]) for row in found) <= 4000
    assert all(constraint in row["instruction"] for row in found for constraint in row["constraints"])


def test_recipes_differ_in_nothing_but_name_and_method():
    recipes = {name: yaml.safe_load((FOLDER / "recipes" / f"{name}.yaml").read_text()) for name in RECIPES}
    assert all(recipe.pop("name") == name for name, recipe in recipes.items())
    methods = [json.dumps(recipe.pop("miso"), sort_keys=True) for recipe in recipes.values()]
    assert len(set(methods)) == len(RECIPES)
    assert all(recipe == recipes["sft"] for recipe in recipes.values())


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_changes_one_key_of_its_variant(probe):
    methods = [
        yaml.safe_load((FOLDER / "recipes" / f"{name}.yaml").read_text())["miso"] for name in (probe, PROBES[probe])
    ]
    changed = {key for key in methods[0] if methods[0][key] != methods[1].get(key)}
    assert set(methods[1]) <= set(methods[0])
    assert len(changed - {"weights"}) == 1  # which belong to their weighting


@pytest.mark.parametrize("variant", RECIPES)
def test_recipes_are_read_with_what_the_driver_adds(variant, tmp_path):
    from misotune.recipe.loading import find_recipe, load_recipe

    _, recipe, *keys = Training("run", "gemma-3-270m", variant, 1, 2e-4).train_command(FULL, tmp_path)
    loaded = load_recipe(find_recipe(recipe), keys).recipe
    assert (loaded.seed, loaded.train.learning_rate, loaded.model.chat_template) == (1, 2e-4, "tulu")
    assert loaded.data.max_length > FULL.max_bytes


def commands(capsys, tmp_path, *options):
    study.main(["--dry-run", "--work", str(tmp_path), "--out", str(tmp_path / "none.jsonl"), *options])
    return [shlex.split(line)[2:] for line in capsys.readouterr().out.splitlines()]


def test_a_dry_run_of_the_full_study_lists_every_piece_once(capsys, tmp_path):
    found = commands(capsys, tmp_path)
    trained = [next(word for word in words if word.startswith("name=")) for words in found if words[0] == "train"]
    assert len(trained) == len(set(trained)) == 2 * 8 * (3 + 3)
    assert sum(words[0] == "eval" for words in found) == len(trained)
    assert sum("--base" in words for words in found) == 2
    assert sum(words[0] == "compare" for words in found) == 2 * 3 * 2 * 2  # with plain tuning, with the base model
    assert sum(words[0] == "prepare" for words in found) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_the_reduced_study_scores_runs_at_the_best_rate_on_ifeval_and_rates_on_validation(
    capsys, tmp_path
):
    found = commands(capsys, tmp_path, "--reduced")
    runs = [words for words in found if words[0] == "train" and "data.path=data/train" in words]
    assert all("train.learning_rate=BEST" in words for words in runs)
    assert len(runs) == 4
    for words in found:
        if words[0] == "eval":
            is_rate = "rate" in words[words.index("--model") + 1]
            assert ("rows/validation.jsonl" in words) == is_rate
            assert ("--flatten" in words) != is_rate


def test_one_rate_is_taken_without_trying_it_by_probes_too(capsys, tmp_path):
    found = commands(capsys, tmp_path, "--reduced", "--rates", "3e-4", "--variants", "sft", "para-start")
    trained = [words for words in found if words[0] == "train"]
    assert [words[2] for words in trained] == [f"name={MODEL}-{name}-seed-0" for name in ("sft", "para-start")]
    assert all("train.learning_rate=0.0003" in words for words in trained)


def test_a_probe_takes_the_rate_of_its_variant(tmp_path):
    form = study.form_of(study.parse_arguments(["--reduced", "--variants", "sft", "para", "para-start"]))
    begun = Study(form, tmp_path, tmp_path, tmp_path, tmp_path / "results.jsonl", dry_run=True)
    for rate, accuracy in zip(form.rates, (0.2, 0.6), strict=True):
        begun.results.append(rate_record(rate, accuracy) | {"piece": f"para-{rate}", "study": ""})
    assert begun._best_rate(MODEL, "para-start") == form.rates[1]


def test_a_probe_is_scored_on_ifeval_alone(capsys, tmp_path):
    found = commands(capsys, tmp_path, "--reduced", "--variants", "sft", "para-start")
    evaluated = {words[words.index("--model") + 1]: "--flatten" in words for words in found if words[0] == "eval"}
    assert {model: flattens for model, flattens in evaluated.items() if "seed" in model} == {
        f"runs/{MODEL}-sft-seed-0": True,
        f"runs/{MODEL}-para-start-seed-0": False,
    }
    compared_names = [[word for word in words if "para-start" in word] for words in found if words[0] == "compare"]
    assert [len(names) for names in compared_names] == [1, 1, 0, 0]  # with sft and the base model; not on Flatten


def test_a_study_of_other_rows_or_rates_is_scored_on_ifeval_alone_without_the_base_model(capsys, tmp_path):
    for change in (["--rates", "1e-3"], ["--mixture", "mixture-verifiable"]):
        found = commands(capsys, tmp_path, "--reduced", *change)
        assert not any("--base" in words or "--flatten" in words for words in found)
        (compared_paths,) = [words for words in found if words[0] == "compare"]
        assert not any("base" in word for word in compared_paths)
    assert any("--base" in words for words in commands(capsys, tmp_path, "--reduced", "--limit", "100"))


def test_what_all_runs_change_is_added_to_the_forms_own_and_may_score_the_base_model_otherwise(capsys, tmp_path):
    keys = ["--training", "train.precision=fp32", "--evaluation", "--dtype float32"]
    found = commands(capsys, tmp_path, "--reduced", "--rates", "4e-4", "--variants", "sft", "para", *keys)
    trained = [words for words in found if words[0] == "train"]
    assert all(words[-3:] == [*study.REDUCED.training, "train.precision=fp32"] for words in trained)
    evaluated = [words for words in found if words[0] == "eval"]
    assert all("--flatten" not in words and words[words.index("--dtype") + 1] == "float32" for words in evaluated)
    assert ["--base" in words for words in evaluated] == [True, False]
    assert sum(words[0] == "compare" for words in found) == 2


def test_a_mixture_that_is_not_there_is_refused_with_those_that_are(capsys, tmp_path):
    with pytest.raises(SystemExit):
        commands(capsys, tmp_path, "--reduced", "--mixture", "nope")
    assert "mixture-verifiable" in capsys.readouterr().err


def test_another_mixture_is_of_this_folder(capsys, tmp_path):
    found = commands(capsys, tmp_path, "--reduced", "--mixture", "mixture-verifiable")
    files = [words[2] for words in found if words[:2] == ["prepare", "mixture"]]
    assert files == [str(FOLDER / "mixture-verifiable.yaml")] * 2


def test_a_piece_whose_result_is_there_is_left_out_and_a_run_whose_responses_are_lost_is_not(capsys, tmp_path):
    """A rate needs its score alone; a run also its responses, until it has been compared."""
    work = tmp_path / "work"
    for name in ("verifiable", "train", "rate"):
        rows.write_jsonl(work / "data" / name / "manifest.json", [{"data_sha256": name}])
    rows.write_jsonl(work / "rows" / "validation.jsonl", [])
    form = study.form_of(study.parse_arguments(["--reduced"]))
    begun = Study(form, tmp_path, tmp_path, work, tmp_path / "results.jsonl", dry_run=True)
    begun.id = begun.identity()
    assert begun.id
    done, left = form.rates
    for training in (Training("rate", MODEL, "para", 0, done), Training("run", MODEL, "flat", 0, done)):
        begun.results.append({"piece": training.name, "study": begun.id, **rate_record(done, 0.5), "kind": "run"})
    begun.run()
    names = [word for line in capsys.readouterr().out.splitlines() for word in line.split() if word.startswith("name=")]
    assert f"name={MODEL}-para-rate-{left:g}" in names
    assert f"name={MODEL}-para-rate-{done:g}" not in names
    assert f"name={MODEL}-flat-seed-0" in names
    for task in ("ifeval", "ifeval-flatten"):
        rows.write_jsonl(work / "runs" / f"{MODEL}-flat-seed-0" / "scores" / task / "scores.json", [{}])
    begun.run()
    assert f"name={MODEL}-flat-seed-0" not in capsys.readouterr().out.split()


def test_a_run_that_was_stopped_and_went_on_costs_both_its_times(tmp_path):
    plan = {"data": {"rows": 3, "samples": 3, "dropped": {}}, "inputs_per_sample": {"mean": 2.0}}
    plan |= {"steps": 3, "tokens": 90, "trained_tokens": 30, "kernel": "flash"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    lines = [{"loss": 1.0, "elapsed_s": s, "peak_memory_gib": gib} for s, gib in [(10, 1.5), (20, 2.5), (4, 2.0)]]
    rows.write_jsonl(tmp_path / "metrics.jsonl", lines)
    found = read_training(tmp_path)
    assert (found["train_s"], found["peak_memory_gib"], found["trained_tokens"]) == (24.0, 2.5, 30)


def test_a_result_that_was_cut_short_is_done_again_and_the_next_line_is_whole(tmp_path, capsys):
    path = tmp_path / "study.jsonl"
    path.write_text('{"piece": "a", "study": "s"}\n{"piece": "b", "stu')
    results = ResultFile(path)
    assert results.find("a", "s")
    assert not results.find("b", "s")
    assert not results.find("a", "other")
    results.append({"piece": "b", "study": "s"})
    assert [record["piece"] for record in read_results([path])] == ["a", "b"]


def test_responses_that_run_in_circles_are_told_apart(tmp_path):
    samples = [
        {"response": "one two three four " * 3, "strict": [True, True]},  # nine 4-grams, five of them repeated
        {"response": "one two three four five six seven", "strict": [True, False, False]},
        {"response": "", "strict": [False]},
    ]
    rows.write_jsonl(tmp_path / "samples.jsonl", samples)
    found = read_responses(tmp_path)
    assert (found["num_responses"], found["num_repetitive"], found["num_others"]) == (3, 1, 2)
    assert (found["strict_repetitive"], found["strict_others"]) == (1.0, 0.25)
    assert found["words"] == pytest.approx((12 + 7) / 3)
    record = base_record() | {"piece": "r", "kind": "responses", "variant": "sft", "seed": 0} | found
    results = table.Results([record, scored("run", "sft", 0, (0.1,) * 6)])
    assert cells_of(table.responses(results, MODEL), "sft")[1:] == ["6", "33.3", "100.0", "25.0"]


def scored(kind, variant, seed, shares, trained_tokens=100, steps=10):
    """A record whose six figures are `shares`, in the order of the table's columns."""
    scores = {task: {"figures": {}, "num_prompts": 4, "types": {}} for task in table.TASKS}
    for (task, figure), share in zip(table.COLUMNS.values(), shares, strict=True):
        scores[task]["figures"][figure] = share
    for task in table.TASKS:
        scores[task] |= {"settings": {"max_new_tokens": 8}, "versions": {"torch": "2"}}
        scores[task]["types"] = {"punctuation:no_comma": {"number": 4, "strict": shares[1], "loose": shares[3]}}
    training = {"rows": 5, "samples": 5, "dropped": {}, "inputs_per_sample": 2.0, "steps": steps, "tokens": 300}
    training |= {"trained_tokens": trained_tokens, "train_s": 10.0, "peak_memory_gib": 1.0}
    record = {"piece": f"{kind}-{variant}-{seed}", "kind": kind, "variant": variant, "scores": scores}
    return (
        base_record() | record | ({} if kind == "base" else {"seed": seed, "learning_rate": 1e-4, "training": training})
    )


def base_record():
    place = {
        "study": "s",
        "form": "full",
        "model": MODEL,
        "jobs": 1,
        "date": "2026-01-01",
        "commit": "c",
        "changed": {},
    }
    return place | {"hardware": "h", "torch": "2"}


def compared(variant, seed, difference, p, task="ifeval", against="sft"):
    line = {"label": "all", "metric": "inst_level_strict_acc", "difference": difference, "p": p}
    line |= {"low": difference - 0.05, "high": difference + 0.05}
    record = {"kind": "comparison", "variant": variant, "seed": seed, "task": task, "against": against}
    record["piece"] = f"{task}-{variant}-{seed}-{against}"
    of_type = {"label": "punctuation:no_comma", "difference": difference, "corrected_p": p}
    return base_record() | record | {"overall": [line], "types": [of_type]}


def cells_of(markdown, row):
    line = next(line for line in markdown.splitlines() if line.startswith(f"| `{row}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def results():
    return table.Results(
        [
            scored("base", "base", 0, (0.1, 0.2, 0.1, 0.2, 0.3, 0.3)),
            scored("run", "sft", 0, (0.10, 0.20, 0.30, 0.40, 0.50, 0.60)),
            scored("run", "sft", 1, (0.20, 0.30, 0.40, 0.50, 0.60, 0.70)),
            scored("run", "flat", 0, (0.30, 0.40, 0.50, 0.60, 0.70, 0.80), trained_tokens=250, steps=25),
            scored("run", "flat", 1, (0.30, 0.40, 0.50, 0.60, 0.70, 0.80), trained_tokens=250, steps=25),
            compared("flat", 0, 0.2, 0.01),
            compared("flat", 1, 0.1, 0.2),
        ]
    )


def test_the_accuracy_table_is_that_of_a_computation_by_hand(results):
    text = table.accuracy(results, MODEL)
    # Two values 0.1 apart: a standard deviation of 0.0707, and of the mean of two 0.05.
    assert cells_of(text, "sft")[1:] == [
        "0.0001",
        "2",
        *(f"{mean}.0 ± 5.0" for mean in (15, 25, 35, 45, 30, 55, 65, 60)),
    ]
    assert cells_of(text, "base")[1:] == ["-", "-", "10.0", "20.0", "10.0", "20.0", "15.0", "30.0", "30.0", "30.0"]


def test_differences_are_means_over_seeds_with_each_seeds_own_p(results):
    assert cells_of(table.against_baseline(results, MODEL), "flat")[1:] == ["+15.0 ± 5.0", "0.010 0.20"]
    (sentence,) = table.findings(results, MODEL)
    assert "+15.0 ± 5.0 points of instruction strict (95 % interval over prompts, for each seed" in sentence
    assert ": +15.0 to +25.0; +5.0 to +15.0)" in sentence
    assert "beyond the noise with 1 of 2 seeds, worse with 0" in sentence


def test_the_model_as_it_was_is_a_comparison_of_its_own(results):
    more = [compared("sft", 1, -0.1, 0.03, against="base"), compared("flat", 1, 0.3, 0.04, against="base")]
    both = table.Results([*results.records, *more])
    assert table.against_base(results, MODEL) == ""
    text = table.against_base(both, MODEL)
    assert cells_of(text, "sft")[1:] == ["-10.0", "0.030"]
    assert cells_of(text, "flat")[1:] == ["+30.0", "0.040"]
    assert text.endswith("Compared were `sft`: seeds 1; `flat`: seeds 1.")
    assert table.against_baseline(both, MODEL) == table.against_baseline(results, MODEL)
    assert table.findings(both, MODEL) == table.findings(results, MODEL)


def test_other_seeds_can_be_run_in_a_folder_of_their_own_and_score_the_base_model_again(capsys, tmp_path):
    found = commands(capsys, tmp_path, "--reduced", "--seeds", "1", "2", "--variants", "sft", "para")
    evaluated = [words for words in found if "--base" in words]
    assert [words[words.index("--model") + 1] for words in evaluated] == [f"runs/{MODEL}-sft-seed-1"]
    base = f"runs/{MODEL}-sft-seed-1/scores/base/ifeval"
    seeds = [words[2] for words in found if words[0] == "compare" and words[1] == base]
    assert seeds == [f"runs/{MODEL}-sft-seed-{seed}/scores/ifeval" for seed in (1, 2)]


def test_the_verdicts_of_a_result_are_kept_prompt_by_prompt(tmp_path):
    kept = ("num_prompts", "figures", "settings", "generation", "prompts_sha256", "versions", "notes")
    scores = dict.fromkeys(kept, 0) | {"groups": {"constraint type": {}}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    samples = [{"strict": [True, False], "loose": [True, True]}, {"strict": [False], "loose": [True]}]
    rows.write_jsonl(tmp_path / "samples.jsonl", samples)
    assert read_scores(tmp_path)["verdicts"] == {"strict": "10 0", "loose": "11 1"}


def test_other_numbers_of_trained_tokens_and_steps_are_told(results):
    text = table.cost(results, MODEL)
    assert "`flat` differs from `sft`: 250 trained tokens in place of 100, 25 steps in place of 10." in text
    assert cells_of(text, "flat")[5:9] == ["250", "10", "25", "1.0"]


def test_gains_stand_beside_the_papers(results):
    cells = cells_of(table.beside_paper(results), "flat")
    assert cells[1] == "45.0 (-3.0)"  # the paper rounds its 45.05 to 45.1, and 48.08 of sft to 48.1
    assert cells[-2:] == ["45.0 (+15.0)", "75.0 (+15.0)"]


def test_one_thing_changed_stands_beside_what_it_was_changed_of(results):
    own = [*results.records, scored("run", "para", 0, (0.1, 0.3, 0.1, 0.3, 0.5, 0.5))]
    own += [scored("run", "para-start", 0, (0.1, 0.4, 0.1, 0.4, 0.6, 0.6)), compared("para-start", 0, 0.2, 0.03)]
    other = [
        record | {"study": "o", "changed": {"mixture": "mixture-verifiable", "rates": [1e-3]}}
        for record in (scored("run", "sft", 0, (0.1, 0.5, 0.1, 0.5, 0.7, 0.7)), compared("sft", 0, 0.0, 1.0))
    ]
    text = table.one_thing_changed(table.Results(own, "s"), [table.Results([*own, *other], "o")], MODEL)
    assert cells_of(text, "para")[1:6] == ["-", "0.0001", "1", "30.0", "10.0"]
    assert cells_of(text, "para-start")[1:8] == ["recipe", "0.0001", "1", "40.0", "10.0", "+20.0", "0.030"]
    assert "| `sft` | mixture: mixture-verifiable, rates: 0.001 | 0.0001 | 1 | 50.0 | 10.0 |" in text
    assert "`flat`" not in text  # neither a probe nor what one was made of
    assert "para-start" not in table.accuracy(table.Results(own, "s"), MODEL)


def test_types_stand_run_by_run_where_several_studies_have_them(results):
    other = [
        record | {"study": "o", "changed": {"rates": [1e-3]}}
        for record in (scored("run", "sft", 2, (0.5,) * 6), scored("run", "flat", 2, (0.25,) * 6))
    ]
    both = [results, table.Results([*results.records, *other], "o")]
    text = table.types_run_by_run(both, MODEL, "flat")
    assert text.splitlines()[0] == "|  | number | seed 0 | seed 1 | 0.001, seed 2 |"
    assert text.splitlines()[-1] == "| punctuation:no_comma | 4 | +20 | +10 | -25 |"
    assert table.types_run_by_run([results], MODEL, "flat") == ""
    assert table.types_run_by_run(both, MODEL, "sft") == ""


def with_verdicts(record, words):
    record["scores"]["ifeval"]["verdicts"] = {"strict": words, "loose": words}
    return record


def test_seeds_together_are_one_test_over_prompts():
    ours = [
        with_verdicts(scored("run", "para", seed, (0.0,) * 6), words) for seed, words in enumerate(["11 1", "10 1"])
    ]
    theirs = [
        with_verdicts(scored("run", "sft", seed, (0.0,) * 6), words) for seed, words in enumerate(["10 0", "01 0"])
    ]
    found = seeds_together(ours, theirs)
    # The first prompt gains one of four verdicts, the second two of two: three of six.
    assert (found.num_seeds, found.difference) == (2, 0.5)
    # Prompts drawn anew: the first twice 1/4, the second twice 1, at the 2.5 % ends.
    assert (found.low, found.high) == (0.25, 1.0)
    assert found.p == 0.5  # of the sums 3, 1, -1, -3 of flipped signs, two are as large
    text = "\n".join(table.together(table.Results([*theirs, *ours]), MODEL))
    assert "`para` against `sft`, all 2 seeds together: +50.0 points" in text


def test_one_seed_together_is_what_misotune_compare_found():
    records = read_results([FOLDER.parent / "results" / "cpu" / "study.jsonl"])
    num_compared = 0
    for record in records:
        if record["kind"] != "comparison" or record["task"] != "ifeval":
            continue
        of_study = [
            other for other in records if other["study"] == record["study"] and other["kind"] in ("run", "base")
        ]
        runs = {(other["variant"], other.get("seed", record["seed"])): other for other in of_study}
        ours, theirs = (runs[record[which], record["seed"]] for which in ("variant", "against"))
        found = seeds_together([ours], [theirs])
        if found is not None:
            (line,) = [line for line in record["overall"] if line["metric"] == "inst_level_strict_acc"]
            assert (found.low, found.high, found.p) == pytest.approx((line["low"], line["high"], line["p"]))
            assert found.difference == pytest.approx(line["difference"])
            num_compared += 1
    assert num_compared >= 4


def test_no_seeds_are_put_together_without_their_verdicts(results):
    assert table.together(results, MODEL) == []


def test_nothing_is_said_of_changes_where_none_was_made(results):
    assert table.one_thing_changed(results, [], MODEL) == ""


def test_the_page_keeps_what_stands_around_the_marks(results, tmp_path):
    page = tmp_path / "study.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write_page(page, table.render(results))
    table.write_page(page, table.render(results))
    text = page.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n")
    assert text.endswith(f"{table.END}\nafter\n")
    assert text.count("**Accuracy**") == 1
    assert "old" not in text
