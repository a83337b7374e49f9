import pytest

from misotune.layout import ChatTemplate, encode_sample
from misotune.layout.joining import join_samples
from misotune.preview.reading import Encoded, Reading
from misotune.samples import Sample, SampleInput, select_inputs

PARA = (
    ("full", "Say <b>hi</b>.\nBe brief.\tNo é."),
    ("constraint", "Say <b>hi</b>.\nBe brief."),
    ("base", "Say <b>hi</b>."),
)


def make_row(row_id="r", inputs=PARA, output="Hé 🦊,\n\nhi <script>alert(1)</script>", **fields):
    entries = tuple(
        SampleInput(role, ({"role": "user", "content": text},), "Be brief." if role == "constraint" else None)
        for role, text in inputs
    )
    return Sample(row_id, "test", "greetings", entries, output, **fields)


def make_chat(row_id="chat"):
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "first"})
    entry = SampleInput("full", (*turns, {"role": "user", "content": "b"}))
    return Sample(row_id, "test", "chat", (entry,), "second", history_loss=True)


@pytest.fixture(scope="session")
def template(tokenizer):
    return ChatTemplate(tokenizer)


@pytest.fixture
def make_reading(template):
    """Makes a reading that encodes as training does, sample by sample, without training's own loop."""

    def make(mode="para", positions="aligned", max_length=None, **fields):
        roles = ("full", "constraint", "base")

        def encode(rows, limit=None):
            samples = [encode_sample(s, template) for row in rows for s in select_inputs(row, mode, roles)]
            samples = samples if len(rows) == 1 else [join_samples(samples)]
            kept = [s for s in samples if limit is None or s.longest_pair <= limit]
            left_out = {"too long": (len(samples) - len(kept), rows[0].id)} if len(kept) < len(samples) else {}
            return Encoded(kept, left_out)

        return Reading(template, mode, roles, positions, lambda rows: encode(rows, max_length), encode, **fields)

    return make
