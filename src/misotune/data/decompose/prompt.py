"""What the model is asked: take one instruction apart, in its own words, as JSON.

A change of the texts here needs another VERSION: it is part of the key under which answers are cached.
"""

import json

VERSION = "1"

SYSTEM = """\
You split an instruction that a user wrote for a language model into two parts:
1. "instruction": the bare task, with all the material it works on (texts, code, tables, data).
2. "constraints": a list of the requirements on how the answer has to be: length, format, style, tone, language, \
words to use or to avoid, what to include or to leave out. One requirement per entry.

Rules:
- Copy the words of the instruction. Do not rephrase, translate, explain, correct or add anything.
- Every part of the instruction goes to exactly one place; nothing is lost, and nothing stands in two places.
- Never take constraints out of quoted text, code, or material that the task works on.
- What is being asked for is the task and no constraint. The bare task must still make sense alone.
- When there are no constraints, give an empty list.

Answer with one JSON object and nothing else: {"instruction": "...", "constraints": ["...", "..."]}\
"""

EXAMPLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Write a letter to my landlord about the broken heating. Keep it under 150 words and polite, and do not "
        'mention the rent. End with the sentence "I look forward to hearing from you."',
        "Write a letter to my landlord about the broken heating.",
        (
            "Keep it under 150 words and polite",
            "do not mention the rent",
            'End with the sentence "I look forward to hearing from you."',
        ),
    ),
    ("What is the difference between weather and climate?", "What is the difference between weather and climate?", ()),
    (
        'Summarize the text below in exactly three bullet points.\n\n"Always wash your hands. Do not touch your face. '
        'These rules were printed on every door of the hospital in 1918."\n\nYour answer must be in Spanish.',
        'Summarize the text below\n\n"Always wash your hands. Do not touch your face. These rules were printed on '
        "every "
        'door of the hospital in 1918."',
        ("in exactly three bullet points", "Your answer must be in Spanish."),
    ),
    (
        "I need a Python function that merges two sorted lists.\nRequirements:\n- no imports\n- type hints everywhere\n"
        "- Don't use sorted()",
        "I need a Python function that merges two sorted lists.",
        ("no imports", "type hints everywhere", "Don't use sorted()"),
    ),
)


def messages_for(text: str) -> tuple[dict[str, str], ...]:
    """Returns the chat that asks for the parts of a text: the rules, examples as turns, and the text."""
    turns = [{"role": "system", "content": SYSTEM}]
    for example, instruction, constraints in EXAMPLES:
        answer = json.dumps({"instruction": instruction, "constraints": list(constraints)}, ensure_ascii=False)
        turns += [{"role": "user", "content": example}, {"role": "assistant", "content": answer}]
    return (*turns, {"role": "user", "content": text})
