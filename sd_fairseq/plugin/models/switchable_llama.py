"""``--arch switchable_llama``: LLaMA (Table 16); 7b is the paper's kind, 135m SmolLM2's, tiny for tests."""

from __future__ import annotations

from typing import Any

from fairseq.models import register_model

from sd_fairseq.families.llama import SIZES
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models import prompt_model
from sd_fairseq.plugin.models.prompt_model import PromptModel
from sd_fairseq.plugin.models.size_options import SizeOption, register_sizes


@register_model("switchable_llama")
class SwitchableLlamaModel(PromptModel):
    """A LLaMA with a policy that reads its prompt; arguments as :class:`PromptModel`'s."""

    name, sizes = "switchable_llama", SIZES
    table = (
        *prompt_model.SIZES,
        SizeOption("key_heads", "key_heads", int, "heads of keys and values, a divisor of the queries'"),
        SizeOption("attention_head_dim", "head_dim", int, "size of a head"),
        SizeOption("rotary_theta", "theta", float, "base of the rotary positions"),
    )

    @classmethod
    def check(cls, args: Any, task: Any) -> None:
        """As every decoder-only model's; also heads that do not divide (InputError)."""
        super().check(args, task)
        if args.decoder_attention_heads % args.key_heads:
            raise InputError(f"--key-heads {args.key_heads} is no divisor of {args.decoder_attention_heads} heads")


register_sizes("switchable_llama", SIZES, "7b", SwitchableLlamaModel.fill)
