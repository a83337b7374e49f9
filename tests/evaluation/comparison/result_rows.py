"""Lines of samples.jsonl."""

TYPES = ("punctuation:no_comma", "detectable_format:title", "keywords:existence")


def ifeval_row(key, strict, loose=None, response="Rain."):
    """A line of samples.jsonl as IFEval writes it."""
    return {
        "key": key,
        "prompt": f"Prompt {key}",
        "response": response,
        "instruction_id_list": list(TYPES[: len(strict)]),
        "strict": [bool(met) for met in strict],
        "loose": [bool(met) for met in (strict if loose is None else loose)],
    }


def scored_row(key, scores, response="Rain.", **more):
    """A line of samples.jsonl as all other tasks write it."""
    return {"key": key, "prompt": f"Prompt {key}", "response": response, "scores": scores, **more}
