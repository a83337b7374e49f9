"""Rows of every kind, written as a dataset, read as a corpus, and compared."""

from dataclasses import replace

from misotune.data.dataset_writer import DatasetWriter
from misotune.samples import Sample, SampleInput
from misotune.training.corpus import read_corpus
from misotune.training.shards import Limits

ACCOUNT = {"read": 1, "kept": 1, "one_input": {}, "dropped": {}}
ROLES = ("full", "constraint", "base")
LIMITS = Limits(400, "drop")


def user(text, role="full", history=()):
    return SampleInput(role, (*history, {"role": "user", "content": text}))


def para_row(number):
    base = f"Write about subject {number}."
    constraints = ["Be brief.", "Use no commas.", "Mention tea."][: 1 + number % 3]
    inputs = [user(" ".join([base, *constraints]))]
    inputs += [user(f"{base} {text}", "constraint") for text in constraints]
    return Sample(f"row-{number}", "t", "", (*inputs, user(base, "base")), "All about it" + ", more" * (number % 5))


def chunk_row(number, chunk, question="Sum?", answer="Four."):
    return Sample(f"row-{number}", f"t{number % 2}", "", (user(f"{question} {number}"),), answer, chunk=chunk)


def chat_row(number, turns=3):
    history = [({"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}) for i in range(turns)]
    messages = [message for turn in history for message in turn]
    return Sample(f"chat-{number}", "t", "", (user("And?", history=messages),), "Done.", history_loss=True)


def mixed_rows():
    """Inputs from one to five, a chat, chunks of two and three rows, an emoji in an id."""
    rows = [para_row(i) for i in range(5)]
    rows += [chat_row(5), *(chunk_row(i, "a") for i in (6, 7)), *(chunk_row(i, "b") for i in (8, 9, 10))]
    rows += [replace(para_row(11), id="row-\U0001f375"), *(chunk_row(i, "a") for i in (12, 13)), chunk_row(14, "c")]
    return rows


def write(folder, rows):
    with DatasetWriter(folder) as writer:
        for row in rows:
            writer.add(row)
        writer.finish({"source": {"name": "t"}, "mode": "para", "account": ACCOUNT})
    return folder


def read(path, template, **changes):
    settings = {"mode": "para", "roles": ROLES, "limits": LIMITS, "max_dropped": 1.0} | changes
    return read_corpus(path, template, **settings)


def content_of(sample):
    arrays = [*sample.inputs, sample.output, sample.is_trained]
    facts = (sample.id, sample.num_opening_tokens, sample.can_chunk, sample.roles, sample.starts, sample.sources)
    return [array.tolist() for array in arrays], facts


def contents(corpus):
    return [content_of(sample) for sample in corpus.samples], corpus.account()
