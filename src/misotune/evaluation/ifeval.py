"""Tasks whose constraints programs verify: IFEval (arXiv 2311.07911) and all in its format.

Strict and loose verdicts; a prompt counts when all its constraints are met, an instruction is one constraint of one
prompt. The figures have lm-eval's names.
"""

from collections.abc import Sequence
from typing import Any

from misotune.evaluation.constrained import ConstrainedPrompt
from misotune.evaluation.task import NO_SETTINGS, Sample, Summary, mean
from misotune.verifiers import verify


class VerifierScoring:
    """Verdicts by programs."""

    settings = NO_SETTINGS

    def score(self, prompts: Sequence[ConstrainedPrompt], responses: Sequence[str]) -> list[Sample]:
        """Returns the verdicts on each response: `strict` and `loose`, in the order of `instruction_id_list`."""
        samples: list[Sample] = []
        for prompt, response in zip(prompts, responses, strict=True):
            verdicts = verify(prompt, response)
            found = {
                "instruction_id_list": list(prompt.instruction_id_list),
                "strict": list(verdicts.strict),
                "loose": list(verdicts.loose),
            }
            samples.append(Sample(prompt.key, prompt.prompt, response, found))
        return samples

    def summarize(self, samples: Sequence[Sample]) -> Summary:
        """Returns the four accuracies, and strict and loose ones for each constraint type.

        >>> found = {"instruction_id_list": ["no_comma", "title"], "strict": [True, False], "loose": [True, True]}
        >>> dict(VerifierScoring().summarize([Sample(1, "Name two fruits.", "Pears, *figs*", found)]).figures).values()
        dict_values([0.0, 0.5, 1.0, 1.0])
        """
        verdicts: list[dict[str, Any]] = [dict(sample.found) for sample in samples]
        figures: dict[str, float] = {}
        for kind in ("strict", "loose"):
            figures[f"prompt_level_{kind}_acc"] = mean([all(found[kind]) for found in verdicts])
            figures[f"inst_level_{kind}_acc"] = mean([met for found in verdicts for met in found[kind]])
        by_type: dict[str, list[tuple[bool, bool]]] = {}
        for found in verdicts:
            for name, strict, loose in zip(found["instruction_id_list"], found["strict"], found["loose"], strict=True):
                by_type.setdefault(name, []).append((strict, loose))
        groups = {
            name: {"number": len(met), "strict": mean([s for s, _ in met]), "loose": mean([lo for _, lo in met])}
            for name, met in sorted(by_type.items())
        }
        counts = {"instructions": sum(len(found["strict"]) for found in verdicts)}
        return Summary(figures, counts, {"constraint type": groups})
