"""Multi-input decoding: transformers' own `generate` over a row of several inputs and one growing output.

All inputs and the generation prompt are one row, computed once with a cache. From then on each step computes one
token, whose attention reads every input as in training. Sampling, logits processors, stopping criteria and
streamers are those of `model.generate`: a hook tells each of its forward calls where the inputs and the output lie.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from misotune.attention import ATTENTION_NAME, WEIGHTINGS, MisoArguments, check_model, register
from misotune.attention.kernels import KERNELS
from misotune.attention.steering import SteerArguments, Steering, check_numbers, refuse_softcap
from misotune.attention.switching import attention_of
from misotune.decoding.prompt import Input, Prompt, encode_prompt
from misotune.errors import RunError, UsageError
from misotune.layout import ChatTemplate
from misotune.layout.row import Positions

DEFAULT_MAX_NEW_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Generated:
    """A response, and what it was made from.

    Attributes:
        text: The response, without special tokens.
        token_ids: Its tokens, with the one that ended it.
        is_cut: It reached `max_new_tokens` before it ended.
        prompt: The inputs as they were read.
        output: What transformers returned: token ids (1, T), or an object with scores and logits where
            `return_dict_in_generate` is set.
    """

    text: str
    token_ids: tuple[int, ...]
    is_cut: bool
    prompt: Prompt
    output: Any


def generate(
    model: Any,
    tokenizer: Any,
    inputs: Sequence[Input],
    *,
    weighting: str = "uniform",
    weights: Sequence[float] | None = None,
    positions: Positions = "aligned",
    shared_prefix: Input | None = None,
    kernel: str = "auto",
    steering: Steering | None = None,
    max_new_tokens: int | None = None,
    generation_config: GenerationConfig | None = None,
    **options: Any,
) -> Generated:
    """Returns one response to several inputs, each of which is read on its own.

    With one input it is what `model.generate` returns for it. The model may be loaded with any attention: it runs
    with MISO attention in here, and has its own back afterwards.

    Logits processors see the row [x_1 .. x_n, generation prompt, response so far]: a repetition penalty counts the
    tokens of all inputs, as it counts those of the prompt in `model.generate`.

    Args:
        model: A transformers model for causal language modelling, or a PEFT model of one.
        tokenizer: Its tokenizer, with a chat template.
        inputs: Each a text, which becomes one user turn, or chat messages that end with the user's.
        weighting: How the n attention results are fused: `uniform`, `fixed`, `fid` or `vanilla`.
        weights: For `fixed`: one positive number for each input, of sum 1.
        positions: `aligned`: the output follows every input at once. `start`: every input starts at 0.
            `successive`: positions run on from input to input.
        shared_prefix: What stands in front of every input: a text, or messages. It is part of each input, and
            computed with each: its keys depend on where the input starts.
        kernel: `auto`, `flash`, `eager`, or `reference`, which computes the whole row anew for every token.
        steering: Scales attention to tokens that are not the user's, in each pair of an input with the output on its
            own; `fid` and `vanilla` weigh by what is left of it. None: nothing is scaled.
        max_new_tokens: Longest response in tokens; None: as in `generation_config`, that of the model, or 512.
        generation_config: Takes precedence over the model's own.
        options: Anything else that `model.generate` takes for one row: `do_sample`, `temperature`, `streamer`,
            `logits_processor`, `stopping_criteria`, `return_dict_in_generate`, ...

    Raises:
        UsageError: An argument of the wrong form; beam search or several responses.
        LayoutError: The chat template gives the inputs no common generation prompt.
        UnsupportedModelError: MISO attention would not be exact for this model, or it cannot be steered.
        RunError: Inputs and response do not fit the model's context.
    """
    check_arguments(len(inputs), weighting, weights, positions, kernel)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if steering is not None:
        _check_steering(base.config, steering)
    prompt = encode_prompt(
        inputs,
        tokenizer,
        shared_prefix=shared_prefix,
        positions=positions,
        weights=weights or (),
        finds_users=steering is not None,
    )
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    if kernel == "reference":  # the definition has no notion of cached keys
        options["use_cache"] = False
    settings, config = _settings(base, tokenizer, generation_config, options)
    _check_context(base.config, prompt, config.max_new_tokens)
    check_model(base.config, prompt.num_positions + config.max_new_tokens)
    cache = DynamicCache() if config.use_cache else None
    row = torch.tensor([prompt.token_ids], device=base.device)
    with _miso_attention(base, _RowHook(prompt, weighting, kernel, cache, steering)):
        output = base.generate(row, attention_mask=torch.ones_like(row), past_key_values=cache, **settings)
    sequence = output if isinstance(output, torch.Tensor) else output.sequences
    token_ids = tuple(sequence[0, prompt.num_tokens :].tolist())
    return Generated(
        text=tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        token_ids=token_ids,
        is_cut=len(token_ids) == config.max_new_tokens and token_ids[-1] not in config.eos_token_id,
        prompt=prompt,
        output=output,
    )


@dataclass(frozen=True, slots=True)
class _RowHook:
    """Tells each forward call of the row where its tokens lie: those computed now are the last of those known."""

    prompt: Prompt
    weighting: str
    kernel: str
    cache: DynamicCache | None
    steering: Steering | None

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if kwargs.get("past_key_values") is not self.cache:
            return args, kwargs  # not the row: a logits processor's own call, which the attention then refuses
        num_cached = 0 if self.cache is None else self.cache.get_seq_length()
        ids = kwargs["input_ids"]
        num_tokens = num_cached + ids.shape[1]
        layout = self.prompt.layout(num_tokens)
        position_ids = layout.position_ids[None, num_cached:].to(ids.device)
        steer = None
        if self.steering is not None:
            steer = SteerArguments.of(self.steering, self.prompt.is_user(num_tokens)[None].to(ids.device))
        miso = MisoArguments(layout, self.weighting, self.kernel, steer)
        return args, {**kwargs, "position_ids": position_ids, "attention_mask": None, "miso": miso}


@contextmanager
def _miso_attention(model: Any, hook: _RowHook) -> Iterator[None]:
    """Runs the model with MISO attention, and gives it its own back."""
    register()
    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with attention_of(model, ATTENTION_NAME, "run MISO attention"):
            yield
    finally:
        handle.remove()


def _check_steering(config: Any, steering: Steering) -> None:
    text = config.get_text_config(decoder=True)
    check_numbers(steering, text.num_hidden_layers, text.num_attention_heads)
    if not steering.is_neutral:
        refuse_softcap(getattr(text, "attn_logit_softcapping", None))


def _settings(
    model: Any, tokenizer: Any, generation_config: GenerationConfig | None, options: dict[str, Any]
) -> tuple[dict[str, Any], GenerationConfig]:
    """Returns what `model.generate` is to be told, and the settings that come out, the model's own included."""
    own = {} if generation_config is None else generation_config.to_diff_dict()
    given = {key: value for key, value in own.items() if key != "transformers_version"} | options
    config = copy.deepcopy(model.generation_config)
    try:
        config.update(**given)
    except ValueError as error:  # max_new_tokens=0 and the like
        raise UsageError(str(error)) from error
    _refuse_other_modes(config, given)
    eos_ids = given.get("eos_token_id") or ChatTemplate(tokenizer).end_ids(config.eos_token_id, tokenizer.eos_token_id)
    eos_ids = [eos_ids] if isinstance(eos_ids, int) else list(eos_ids)
    if not eos_ids:
        raise UsageError("neither the model nor its tokenizer names an end-of-sequence token; pass eos_token_id")
    pad_ids = [i for i in (config.pad_token_id, tokenizer.pad_token_id, eos_ids[0]) if i is not None]
    fixed: dict[str, Any] = {
        "eos_token_id": eos_ids,
        "pad_token_id": pad_ids[0],
        "max_new_tokens": DEFAULT_MAX_NEW_TOKENS if config.max_new_tokens is None else config.max_new_tokens,
        "use_cache": config.use_cache is not False,
        # The cache is given: one that holds all keys of every layer. The row is computed in one call.
        "cache_implementation": None,
        "prefill_chunk_size": None,
    }
    config.update(**fixed)
    if config.stop_strings:
        fixed["tokenizer"] = tokenizer
    return given | fixed, config


def _refuse_other_modes(config: GenerationConfig, given: dict[str, Any]) -> None:
    mode = config.get_generation_mode(given.get("assistant_model"))
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UsageError(f"multi-input decoding is greedy or samples; {mode.value.replace('_', ' ')} is not supported")
    if (config.num_return_sequences or 1) > 1:
        raise UsageError(f"num_return_sequences={config.num_return_sequences}: call generate once for each response")
    if (config.guidance_scale or 1) != 1:
        raise UsageError(f"guidance_scale={config.guidance_scale} runs the model on a second prompt; leave it out")
    if given.get("max_length") is not None:
        raise UsageError("max_length would count the tokens of all inputs; use max_new_tokens")


def check_arguments(
    num_inputs: int, weighting: str, weights: Sequence[float] | None, positions: str, kernel: str = "auto"
) -> None:
    """Refuses arguments of `generate` that do not fit, before anything is loaded.

    Raises:
        UsageError: An unknown name, or weights that are not those of the inputs.
    """
    named = {
        "weighting": (weighting, WEIGHTINGS),
        "positions": (positions, get_args(Positions)),
        "kernel": (kernel, KERNELS),
    }
    for name, (value, allowed) in named.items():
        if value not in allowed:
            raise UsageError(f"{name} {value!r} is not one of {', '.join(allowed)}")
    if weighting == "fixed" and not weights:
        raise UsageError("weighting 'fixed' needs weights: a positive number for each input, of sum 1")
    if weighting != "fixed" and weights:
        raise UsageError(f"weights belong to weighting 'fixed', not to {weighting!r}")
    if weights and (len(weights) != num_inputs or not min(weights) > 0 or not abs(sum(weights) - 1) <= 1e-6):
        raise UsageError(
            f"weights {', '.join(map(str, weights))}: {num_inputs} inputs need {num_inputs} positive numbers of sum 1"
        )


def _check_context(config: Any, prompt: Prompt, max_new_tokens: int) -> None:
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    room = None if context is None else context - prompt.num_positions
    if room is None or max_new_tokens <= room:
        return
    cure = f"lower max_new_tokens to {room}" if room > 0 else "shorten the inputs"
    raise RunError(
        f"the inputs take up {prompt.num_positions} positions (the longest has {max(map(len, prompt.inputs))} tokens, "
        f"positions={prompt.positions!r}); with {max_new_tokens} new tokens they exceed the model's context "
        f"of {context}: {cure}"
    )
