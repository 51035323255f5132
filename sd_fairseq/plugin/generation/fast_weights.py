"""A model's weights as generation reads them: fused, scaled, packed, in the wanted precision; here a BART's."""

from __future__ import annotations

import weakref
from typing import Any, Callable, List, MutableMapping, NamedTuple, Optional, Tuple, Type, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_fairseq.execution.packed_linear import FUSED_ACTIVATIONS, Int8Linear, PackedLinear

Product = Union[PackedLinear, Int8Linear]
FINGERPRINT_VALUES = 16  # values looked at in each weight to see whether an optimizer has moved it


class Precision(NamedTuple):
    """What generation computes in.

    Args:
        dtype: of activations, and of weights unless ``int8``.
        int8: products have 8-bit weights.
    """

    dtype: torch.dtype
    int8: bool = False


class Norm:
    """LayerNorm in the precision of generation.

    Args:
        module: fairseq's LayerNorm.
        dtype: of the activations.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        self.shape = tuple(module.normalized_shape)
        self.weight, self.bias = module.weight.detach().to(dtype), module.bias.detach().to(dtype)
        self.eps = module.eps

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class Residual:
    """``LN(x + f(x))``, or ``x + f(LN(x))`` where the model normalises before.

    Args:
        norm: the sub-layer's LayerNorm.
        before: True = pre-norm.
    """

    def __init__(self, norm: Norm, before: bool):
        self.norm, self.before = norm, before

    def __call__(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Runs ``function`` as a residual sub-layer on [..., C]."""
        if self.before:
            return x + function(self.norm(x))
        return self.norm(function(x).add_(x))


class FeedForward:
    """A layer's two feed-forward products.

    Args:
        layer: a fairseq encoder or decoder layer.
        activation: name of its activation function.
        precision: see :class:`Precision`.
        late: see :class:`PackedLinear`.
    """

    def __init__(self, layer: nn.Module, activation: str, precision: Precision, late: bool = False):
        self.name = activation
        fused = activation if activation in FUSED_ACTIVATIONS else None
        self.first = pack([layer.fc1], precision, fused, late=late)
        self.activation = None if fused else layer.activation_fn
        self.second = pack([layer.fc2], precision, late=late)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        x = self.first(x)
        return self.second(x if self.activation is None else self.activation(x))


class LayerWeights:
    """One layer, ready to run.

    Args:
        layer: a fairseq encoder or decoder layer.
        activation: name of its activation function.
        precision: see :class:`Precision`.
    """

    def __init__(self, layer: nn.Module, activation: str, precision: Precision):
        attention, cross = layer.self_attn, getattr(layer, "encoder_attn", None)
        late = cross is not None  # the native decoder step may come first
        self.heads, self.head_dim = attention.num_heads, attention.head_dim
        before = layer.normalize_before
        scale = self.head_dim**-0.5
        self.attention_residual = Residual(Norm(layer.self_attn_layer_norm, precision.dtype), before)
        three = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = pack(three, precision, scales=(scale, 1.0, 1.0), late=late)
        self.keys_values: Optional[Product] = None  # alone, for tokens that do not run the layer; packed when needed
        self.attention_out = pack([attention.out_proj], precision, late=late)
        self.ffn_residual = Residual(Norm(layer.final_layer_norm, precision.dtype), before)
        self.ffn = FeedForward(layer, activation, precision, late)
        if cross is not None:
            self.cross_residual = Residual(Norm(layer.encoder_attn_layer_norm, precision.dtype), before)
            self.cross_query = pack([cross.q_proj], precision, scales=(scale,), late=late)
            self.cross_keys_values = pack([cross.k_proj, cross.v_proj], precision)
            self.cross_out = pack([cross.out_proj], precision, late=late)


class FastWeights:
    """All of a model's weights, packed; a copy that must be renewed when the model learns.

    Args:
        model: a switchable BART; other families have a class of their own.
        precision: see :class:`Precision`.

    Attributes:
        stream: precision of the states between sub-layers.
        keeps_norm: a skipped sub-layer still applies its LayerNorm.
        runs_natively: the native decoder step knows these layers.
    """

    runs_natively = True

    def __init__(self, model: Any, precision: Precision):
        encoder, decoder = model.encoder, model.decoder
        self.model = model
        self.fingerprint = take_fingerprint(model)
        self.precision, self.stream, self.device = precision, precision.dtype, device_of(model)
        self.keeps_norm = bool(decoder.skip_keeps_layer_norm)
        activation = model.args.activation_fn
        self.encoder_layers: List[Any] = [LayerWeights(layer, activation, precision) for layer in encoder.layers]
        self.decoder_layers: List[Any] = [LayerWeights(layer, activation, precision) for layer in decoder.layers]
        self.encoder_norm: Any = optional_norm(encoder.layer_norm, precision.dtype)
        self.decoder_norm: Any = optional_norm(decoder.layer_norm, precision.dtype)
        self.embedding_norm = optional_norm(decoder.layernorm_embedding, precision.dtype)
        self.head = pack([decoder.output_projection], precision, late=True)

    @property
    def model(self) -> Any:
        """The model; it is not kept alive."""
        return self._model()

    @model.setter
    def model(self, model: Any) -> None:
        self._model = weakref.ref(model)

    def is_of(self, model: Any) -> bool:
        """Tells whether the model's weights are still those that were packed."""
        if self.device != device_of(model):
            return False
        return all(torch.equal(old, new) for old, new in zip(self.fingerprint, take_fingerprint(model)))

    def embed_source(self, src_tokens: Tensor) -> Tensor:
        """Embeds the source: [B, S] -> [B, S, C]."""
        return self.model.encoder.forward_embedding(src_tokens)[0]

    def embed_step(self, tokens: Tensor) -> Tensor:
        """Embeds the newest of [R, step + 1] tokens, without LayerNorm: [R, C]."""
        decoder = self.model.decoder
        x = decoder.embed_scale * F.embedding(tokens[:, -1], decoder.embed_tokens.weight)
        if decoder.embed_positions is not None:
            x = x + decoder.embed_positions(tokens, incremental_state={})[:, -1]
        return x.to(self.stream)

    def source_bias(self, lengths: List[int], keep: Optional[Tensor] = None) -> Optional[List[Tensor]]:
        """Returns what the encoder adds to the scores, [H, S', S'] a sentence; None = nothing.

        Args:
            lengths: S' of the sentences.
            keep: BoolTensor [B, S], tokens that are not dropped; None = all.
        """
        return None

    def step_bias(self, step: int) -> Optional[Tensor]:
        """Returns what decoder self-attention adds to the scores at a step, [H, step + 1]; None = nothing."""
        return None


PACKED: MutableMapping[Any, FastWeights] = weakref.WeakKeyDictionary()  # model -> its weights, packed last


def packed_weights(model: Any, precision: Precision, kind: Type[FastWeights] = FastWeights) -> FastWeights:
    """Returns a model's packed weights; they are packed again only for others, another precision or another device.

    They belong to the model and not to a generator: fairseq's hub builds a generator a call.

    Args:
        model: a switchable model.
        precision: see :class:`Precision`.
        kind: of its family.
    """
    weights = PACKED.get(model)
    if weights is None or weights.precision != precision or not weights.is_of(model):
        PACKED.pop(model, None)
        del weights  # the old copy goes before the new one comes
        PACKED[model] = kind(model, precision)
    return PACKED[model]


def device_of(model: Any) -> torch.device:
    """Returns where a model's weights are."""
    return next(model.parameters()).device


def optional_norm(module: Optional[nn.Module], dtype: torch.dtype) -> Optional[Norm]:
    """Returns a LayerNorm's :class:`Norm`, or None for none."""
    return None if module is None else Norm(module, dtype)


def pack(
    linears: List[nn.Module],
    precision: Precision,
    activation: Optional[str] = None,
    scales: Tuple[float, ...] = (),
    late: bool = False,
) -> Product:
    """Packs linear layers of one input into one product, each scaled by its factor."""
    factors = scales or (1.0,) * len(linears)
    parts = [scaled(linear.weight, factor) for linear, factor in zip(linears, factors)]
    weights = parts[0] if len(parts) == 1 else torch.cat(parts)
    bias: Optional[Tensor] = None
    if any(linear.bias is not None for linear in linears):
        bias = torch.cat([scaled(bias_of(linear), factor) for linear, factor in zip(linears, factors)])
    if precision.int8:
        return Int8Linear(weights, bias, activation)
    bias = None if bias is None else bias.to(precision.dtype)
    return PackedLinear(weights.to(precision.dtype), bias, activation, late)


def scaled(value: Tensor, factor: float) -> Tensor:
    """Returns a detached tensor times ``factor``; itself for 1."""
    return value.detach() if factor == 1.0 else value.detach() * factor


def bias_of(linear: nn.Module) -> Tensor:
    """Returns a linear layer's bias, zeros where it has none."""
    return linear.weight.new_zeros(linear.weight.size(0)) if linear.bias is None else linear.bias


def take_fingerprint(model: Any) -> Tuple[Tensor, Tensor]:
    """Returns what changes when the model's weights do: their version counters and a few values of each.

    Optimizers move every value of a weight, some of them without touching its version counter. All values are copied
    at once: a GPU starts one kernel for hundreds of weights.
    """
    versions, values = [], []
    for parameter in model.parameters():
        versions.append(parameter._version)
        flat = parameter.detach().reshape(-1)
        stride = max(1, flat.numel() // FINGERPRINT_VALUES)
        values.append(flat[::stride][:FINGERPRINT_VALUES])
    return torch.tensor(versions), torch.cat(values).float().cpu()
