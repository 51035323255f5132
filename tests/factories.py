"""What the tests are made of: small spaces, whole spaces enumerated, tiny models, padded batches, random decisions.

fairseq is imported by the functions that need it only, so that the core's tests run without it.
"""

import argparse
import itertools
from types import SimpleNamespace
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.policy import PolicyDistribution

VOCABULARY = 96
TINY_STRATEGIES = "keep,last:20,uniform:50"
TINY_OPTIONS = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
# every kind of T5: v1.1 (a gate, a head of its own) and 1.0 (ReLU, the head tied and scaled); A is not C in both
T5 = {"arch": "switchable_t5_tiny"}
T5_VARIANTS = {
    "T5 v1.1": T5,
    "T5 1.0": {**T5, "feed_forward": "relu", "share_decoder_input_output_embed": True, "attention_head_dim": 12},
    "T5, cross-attention apart": {**T5, "sd_cross_attention_apart": True},
}
# decoder-only: heads in groups and a head of its own; every head its own keys, the head tied; learned positions
PROMPT_VARIANTS = {
    "LLaMA": {"arch": "switchable_llama_tiny"},
    "LLaMA, tied": {"arch": "switchable_llama_tiny", "share_decoder_input_output_embed": True, "key_heads": 4},
    "GPT-2": {"arch": "switchable_gpt2_tiny"},
}
PROMPT_OPTIONS = {"decoder_embed_dim": 32, "decoder_ffn_embed_dim": 64}


class Batch(NamedTuple):
    """A padded batch as fairseq makes them; ``sources`` are the unpadded ones."""

    sources: List[Tensor]
    src_tokens: Tensor
    src_lengths: Tensor
    prev_output_tokens: Tensor

    @property
    def net_input(self) -> Dict[str, Tensor]:
        return {"src_tokens": self.src_tokens, "src_lengths": self.src_lengths}


def build_tiny_space(**options: Any) -> DecisionSpace:
    """2 + 2 layers and three token strategies: few enough paths to list them all."""
    return DecisionSpace.build(2, 2, **{"token_strategies": TINY_STRATEGIES, **options})


def enumerate_paths(space: DecisionSpace) -> Decisions:
    """Lists every path of a (tiny) space, one a row."""
    switches = itertools.product([False, True], repeat=space.num_switches)
    pairs = list(itertools.product(switches, range(len(space.token_strategies))))
    keep = torch.tensor([list(kept) for kept, _ in pairs], dtype=torch.bool).view(len(pairs), space.num_switches)
    return space.to_decisions(keep, torch.tensor([choice for _, choice in pairs]))


def random_distribution(space: DecisionSpace, batch_size: int = 1, dtype: torch.dtype = torch.float64):
    """A policy with nothing special about it."""
    keep = torch.randn(batch_size, space.num_switches, dtype=dtype)
    return PolicyDistribution(space, keep, torch.randn(batch_size, len(space.token_strategies), dtype=dtype))


def repeat_distribution(distribution: PolicyDistribution, count: int) -> PolicyDistribution:
    """The same policy for ``count`` examples."""
    keep = distribution.keep_logits.expand(count, -1)
    return PolicyDistribution(distribution.space, keep, distribution.token_logits.expand(count, -1))


def random_decisions(space: DecisionSpace, batch_size: int, keep_probability: float = 0.6) -> Decisions:
    """Random paths, all token strategies alike."""
    keep = torch.rand(batch_size, space.num_switches) < keep_probability
    return space.to_decisions(keep, torch.randint(len(space.token_strategies), (batch_size,)))


def pad_rows(rows: Sequence[Tensor], padding: int, side: str = "left", extra: int = 0) -> Tensor:
    """Stacks rows of different lengths, with ``extra`` more columns of padding than needed."""
    width = max(len(row) for row in rows) + extra
    padded = torch.full((len(rows), width), padding)
    for line, row in zip(padded, rows):
        line[width - len(row) if side == "left" else 0 :][: len(row)] = row
    return padded


def build_dictionary(words: int = VOCABULARY):
    """A fairseq dictionary of its four special symbols and ``words`` words."""
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for index in range(words):
        dictionary.add_symbol(f"w{index}")
    return dictionary


def build_model(arch: str = "switchable_bart_base", dictionary: Any = None, task_options: Any = None, **overrides: Any):
    """A tiny model with weights large enough that every sub-layer shows in the output; in eval mode.

    Args:
        arch: a registered architecture; its sizes give way to :data:`TINY_OPTIONS`.
        dictionary: fairseq dictionary; None = :func:`build_dictionary`.
        task_options: what the task's configuration says.
        overrides: any option of the model.
    """
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    import sd_fairseq.plugin.models.switchable_bart  # noqa: F401  # registers the architectures
    import sd_fairseq.plugin.models.switchable_gpt2  # noqa: F401
    import sd_fairseq.plugin.models.switchable_llama  # noqa: F401
    import sd_fairseq.plugin.models.switchable_t5  # noqa: F401

    dictionary = dictionary or build_dictionary()
    head = {"attention_head_dim": 12} if "llama" in arch else {}  # A is not C
    sizes = {**TINY_OPTIONS, **(PROMPT_OPTIONS if "llama" in arch or "gpt2" in arch else {}), **head}
    args = argparse.Namespace(arch=arch, task="translation", **{**sizes, **overrides})
    ARCH_CONFIG_REGISTRY[arch](args)
    cfg = SimpleNamespace(**(task_options or {}))
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=cfg)
    model = ARCH_MODEL_REGISTRY[arch].build_model(args, task)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.startswith("encoder.policy."):
            torch.nn.init.normal_(parameter, std=0.15)
        elif "gpt2" in arch and name.endswith("bias") and not name.startswith("encoder.policy."):
            torch.nn.init.normal_(parameter, std=0.15)
    with torch.no_grad():  # hypotheses end at different steps only if their end is probable now and then
        head = getattr(model.decoder, "output_projection", None) or model.decoder.embed_tokens  # BART's are one
        head.weight[dictionary.eos()] *= 4
    return model.eval()


def distinguish(model: torch.nn.Module) -> None:
    """Makes all norms and biases differ, so that none can stand in for another; the policy's stay."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and not name.startswith("encoder.policy."):
            drawn = 0.15 * torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(1 + drawn if name.endswith("weight") else drawn)


def build_switchable_twin(bart: torch.nn.Module, **overrides: Any):
    """A switchable model with the weights of a plain BART."""
    model = build_model(dictionary=bart.encoder.dictionary, **overrides)
    model.load_state_dict(bart.state_dict(), strict=True)
    return model


def undecide(model: torch.nn.Module) -> None:
    """Gives a policy logits around 0 that depend on the input: deployed paths are mixed then."""
    for name, parameter in model.encoder.policy.named_parameters():
        if name.endswith(("heads.weight", "hidden.bias")):  # with a bias, the scale of the input matters too
            torch.nn.init.normal_(parameter)
        if name.endswith("heads.bias"):
            torch.nn.init.zeros_(parameter)


def random_batch(
    lengths: Sequence[int] = (20, 13, 7, 17, 2, 9), target_length: int = 8, dictionary: Optional[Any] = None
) -> Batch:
    """Random sources of the given lengths (end-of-sentence included), left-padded, and random decoder input."""
    dictionary = dictionary or build_dictionary()
    first, last = dictionary.nspecial, len(dictionary)
    ends = torch.tensor([dictionary.eos()])
    sources = [torch.cat([torch.randint(first, last, (length - 1,)), ends]) for length in lengths]
    previous = torch.randint(first, last, (len(sources), target_length))
    previous[:, 0] = dictionary.eos()
    return Batch(sources, pad_rows(sources, dictionary.pad()), torch.tensor(list(lengths)), previous)


def along(batch: Batch, decisions: Decisions) -> Dict[str, Any]:
    """A batch's encoder input with a given path for every example; generators pass it on to the encoder."""
    from sd_fairseq.plugin.models.switchable_encoder import PathRequest

    return {**batch.net_input, "path": PathRequest(decisions=decisions)}


def pick(batch: Batch, row: int) -> Batch:
    """One example of a batch, without its padding."""
    one = slice(row, row + 1)
    source = batch.sources[row].unsqueeze(0)
    return Batch([batch.sources[row]], source, batch.src_lengths[one], batch.prev_output_tokens[one])


def generate(
    models: Sequence[torch.nn.Module], net_input: Dict[str, Any], beam: int, prefix_tokens=None, **options: Any
):
    """Runs fairseq's own generator; returns its hypotheses, best first, for every sentence."""
    from fairseq.sequence_generator import SequenceGenerator

    dictionary = models[0].decoder.dictionary
    generator = SequenceGenerator(models, dictionary, beam_size=beam, **{"max_len_b": 12, **options})
    return generator.generate(models, {"net_input": net_input}, prefix_tokens=prefix_tokens)
