"""A family of its own: fast rotations, a norm by absolute values, a feed-forward of two inputs that meet."""

from dataclasses import dataclass

import torch
from fairseq.models import register_model
from torch import nn

from sd_fairseq.families.positions import rotate
from sd_fairseq.families.prompt_layer import DecoderShape, PromptLayer
from sd_fairseq.plugin.models import prompt_model
from sd_fairseq.plugin.models.size_options import SizeOption, register_sizes


class MeanNorm(nn.Module):
    def forward(self, x):
        return x / (x.abs().mean(dim=-1, keepdim=True) + 1e-5)


class MeetingFFN(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.one, self.other, self.out = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x):
        return self.out(torch.maximum(self.one(x), self.other(x)))


class ToyLayer(PromptLayer):
    def place(self, x, positions):
        return rotate(x, positions, theta=7.0)


@dataclass(frozen=True)
class ToyShape(DecoderShape):
    ffn_products = 3  # its cost entry

    def make_norm(self):
        return MeanNorm()

    def make_ffn(self):
        return MeetingFFN(self.dim, self.ffn_dim)

    def make_layer(self, index):
        return ToyLayer(self, index)


@register_model("switchable_toy")
class SwitchableToyModel(prompt_model.PromptModel):
    name, sizes = "switchable_toy", {"tiny": ToyShape(32, 4, 2, 8, 48, 3)}
    table = (
        *prompt_model.SIZES,
        SizeOption("key_heads", "key_heads", int, "heads of keys and values"),
        SizeOption("attention_head_dim", "head_dim", int, "size of a head"),
    )


register_sizes("switchable_toy", SwitchableToyModel.sizes, "tiny", SwitchableToyModel.fill)
