"""Trains recipes on several gloo ranks without paying for the imports each time.

A test that starts its ranks through the command line spends most of its time on importing torch, transformers and
DeepSpeed, once for each rank. This program imports them once, and then forks the ranks of one case after the other:
each rank is a process of its own which has trained nothing before, in the environment that torchrun gives it, and calls
`misotune.training.run.train`. Nothing of a case is left in the next one, and a rank may die without ending the others.

Tests call `train_on_two_ranks`, or `train_on_ranks` where a rank is meant to fail:

    runs = train_on_two_ranks([Case(recipe, resume=True), Case(other)], tmp_path)

The signals, launchers and exit codes of the command line are tested elsewhere, with the command line.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from misotune.recipe.loading import load_recipe
from misotune.recipe.resolved import DEFAULT, ResolvedRecipe, dump, leaves
from misotune.recipe.schema import Recipe
from misotune.runs import RunFolder

REPOSITORY = Path(__file__).parents[2]
# After one rank failed, the others get this long to end by themselves.
GRACE_S = 20.0


@dataclass(frozen=True)
class Case:
    """A recipe to train.

    Attributes:
        recipe: The recipe.
        ranks: Number of processes; with one, WORLD_SIZE is 1, as torchrun sets it.
        resume: As the command's option.
        overwrite: As the command's option.
        before: `package.module:function`, called with the rank in each process before it trains: a test's way to
            break something there.
        environment: Further variables.
        timeout_s: After this the ranks are killed, and their exit code is -9.
    """

    recipe: Recipe
    ranks: int = 2
    resume: bool = False
    overwrite: bool = False
    before: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 240.0


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        run: Its run folder.
        codes: Each rank's exit code, as the command would exit with; below 0: the signal that killed it.
        said: What each rank printed, with the traceback of what ended it.
        seconds: How long it took.
    """

    run: RunFolder
    codes: list[int]
    said: list[str]
    seconds: float


def train_on_two_ranks(cases: Sequence[Case | Recipe], tmp_path: Path) -> list[RunFolder]:
    """Trains each on its ranks (a bare recipe: on two), one after the other, and returns their run folders.

    A rank that fails, fails the test with what it printed.
    """
    runs: list[RunFolder] = []
    for outcome in train_on_ranks(cases, tmp_path):
        if any(outcome.codes):
            said = "\n".join(f"--- rank {rank}:\n{text[-3000:]}" for rank, text in enumerate(outcome.said))
            pytest.fail(f"{outcome.run.name}: exit codes {outcome.codes}\n{said}", pytrace=False)
        runs.append(outcome.run)
    return runs


def train_on_ranks(cases: Sequence[Case | Recipe], tmp_path: Path) -> list[Outcome]:
    """Trains each on its ranks, one after the other, and returns how they ended."""
    folder = tmp_path / f"ranks-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    whole = [case if isinstance(case, Case) else Case(case) for case in cases]
    orders: list[dict[str, Any]] = []
    for number, case in enumerate(whole):
        path = folder / f"{number}-{case.recipe.name}.yaml"
        origins = {".".join(key): DEFAULT for key, _ in leaves(case.recipe)}
        path.write_text(dump(ResolvedRecipe(case.recipe, origins)), encoding="utf-8")
        order = {key: getattr(case, key) for key in ("ranks", "resume", "overwrite", "before", "timeout_s")}
        orders.append({**order, "recipe": str(path), "environment": dict(case.environment)})
    (folder / "cases.json").write_text(json.dumps(orders), encoding="utf-8")
    search = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / "driver.txt").open("w", encoding="utf-8") as said:
        driver = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={
                **os.environ,
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(search),
            },
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            driver.wait(timeout=60 + sum(case.timeout_s for case in whole))
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
    if driver.returncode != 0:
        pytest.fail(f"rank_driver failed:\n{(folder / 'driver.txt').read_text()[-3000:]}", pytrace=False)
    return [
        Outcome(RunFolder(Path(case.recipe.output.runs_dir) / case.recipe.name), **ended)
        for case, ended in zip(whole, json.loads((folder / "outcomes.json").read_text()), strict=True)
    ]


def main(folder: Path) -> None:
    """Runs the cases of `folder/cases.json`, and writes `folder/outcomes.json`."""
    _import_everything()
    orders = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    outcomes = [_run_case(order, folder / f"{number}") for number, order in enumerate(orders)]
    (folder / "outcomes.json").write_text(json.dumps(outcomes), encoding="utf-8")


def _import_everything() -> None:
    """Imports what ranks need; nothing of it may compute yet, for threads do not survive a fork."""
    for name in (
        "peft",
        "misotune.training.run",
        "misotune.training.memory_trace",
        "torch._subclasses.fake_tensor",
        # DeepSpeed imports it at the first optimizer, and with it all of torch's compiler.
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "transformers.integrations.deepspeed",
        "transformers.models.llama.modeling_llama",
    ):
        importlib.import_module(name)
    for name in ("AutoModelForCausalLM", "LlamaForCausalLM", "PreTrainedTokenizerFast", "Trainer"):
        getattr(sys.modules["transformers"], name)  # transformers imports them when they are first asked for
    # A thousand regular expressions, compiled at the first model.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    # Else each rank's collector goes through all of this, and so copies the pages that the fork shares.
    gc.collect()
    gc.freeze()


def _run_case(order: dict[str, Any], stem: Path) -> dict[str, Any]:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    start = time.monotonic()
    # As torchrun: the ranks meet at a store of the process that started them. Its port cannot be lost to another.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks: dict[int, int] = {}
    for rank in range(order["ranks"]):
        process = os.fork()
        if process == 0:
            _be_rank(rank, store.port, order, Path(f"{stem}.rank-{rank}.txt"))
        ranks[process] = rank
    codes = _wait(ranks, order["timeout_s"])
    said = [Path(f"{stem}.rank-{rank}.txt").read_text(encoding="utf-8", errors="replace") for rank in range(len(codes))]
    return {"codes": codes, "said": said, "seconds": round(time.monotonic() - start, 2)}


def _wait(ranks: dict[int, int], timeout_s: float) -> list[int]:
    """Waits for the processes, kills what does not end, and returns exit codes by rank."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(ranks):
        for process, rank in ranks.items():
            if rank in codes:
                continue
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank] != 0:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
            elif time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[rank] for rank in range(len(ranks))]


def _be_rank(rank: int, port: int, order: dict[str, Any], output: Path) -> None:
    """Trains as one rank, and ends the process."""
    code = 1
    try:
        # A killed driver takes its ranks along.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            GROUP_RANK="0",
            WORLD_SIZE=str(order["ranks"]),
            LOCAL_WORLD_SIZE=str(order["ranks"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_RESTART_COUNT="0",
            TORCHELASTIC_MAX_RESTARTS="0",
            TORCHELASTIC_RUN_ID=f"case-{port}",
            TORCHELASTIC_USE_AGENT_STORE="True",
            **order["environment"],
        )
        code = _train(rank, order)
    except BaseException:  # noqa: BLE001 - also SystemExit: nothing may go on in the fork
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _train(rank: int, order: dict[str, Any]) -> int:
    from misotune.errors import MisotuneError
    from misotune.training.prepared import Watcher
    from misotune.training.run import train

    def say(sentence: str) -> None:
        sys.stdout.write(f"{sentence}\n")

    if order["before"]:
        module, function = order["before"].split(":")
        getattr(importlib.import_module(module), function)(rank)
    path = Path(order["recipe"])
    resolved = load_recipe(path, [])
    try:
        train(
            resolved.recipe,
            path.read_text(encoding="utf-8"),
            resume=order["resume"],
            overwrite=order["overwrite"],
            watcher=Watcher(on_message=say),
        )
    except MisotuneError as error:
        traceback.print_exc()
        say(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
