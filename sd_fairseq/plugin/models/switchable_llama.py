"""``--arch switchable_llama``: LLaMA (Table 16); 7b is the paper's kind, 135m SmolLM2's, tiny for tests."""

from __future__ import annotations

from typing import Any, Container, Dict

from fairseq.models import register_model

from sd_fairseq.families.llama import SIZES, LlamaShape
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models import prompt_model
from sd_fairseq.plugin.models.prompt_model import PromptModel
from sd_fairseq.plugin.models.size_options import SizeOption, collect_sizes, register_sizes


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
    def defaults(cls, args: Any, shape: LlamaShape) -> Dict[str, Any]:
        """Returns option -> default of what is none of a shape's sizes."""
        return {"added_symbols": 0, "max_source_positions": 2048, "max_target_positions": 2048}

    @classmethod
    def shape_of(cls, args: Any) -> LlamaShape:
        """Collects the sizes among the options."""
        return LlamaShape(**collect_sizes(args, cls.table))

    @classmethod
    def check(cls, args: Any, task: Any) -> None:
        """As every decoder-only model's; also heads that do not divide (InputError)."""
        super().check(args, task)
        if args.decoder_attention_heads % args.key_heads:
            raise InputError(f"--key-heads {args.key_heads} is no divisor of {args.decoder_attention_heads} heads")

    @classmethod
    def owns(cls, names: Container[str]) -> bool:
        """Tells by the names of a checkpoint's weights whether it is one of this model."""
        return "encoder.embed_tokens.weight" not in names and "decoder.embed_positions.weight" not in names


register_sizes("switchable_llama", SIZES, "7b", SwitchableLlamaModel.fill)
