"""What fairseq's sequence generators drive: a switchable model with packed weights, in place of their EnsembleModel.

The search itself (beam, sampling, prefixes, constraints, language-model fusion) stays fairseq's, so hypotheses are
the same; only what computes the log-probabilities is exchanged.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type

import torch
import torch.nn.functional as F
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.plugin.generation.fast_answer import AnswerSearch
from sd_fairseq.plugin.generation.fast_encoder import encode, flatten_encoder_out, read_first
from sd_fairseq.plugin.generation.fast_llama import FastLlamaWeights
from sd_fairseq.plugin.generation.fast_prompt import read_prompts, take_prompts
from sd_fairseq.plugin.generation.fast_t5 import FastT5Weights
from sd_fairseq.plugin.generation.fast_weights import FastWeights, Precision, packed_weights
from sd_fairseq.plugin.generation.native_search import start_search
from sd_fairseq.plugin.models.prompt_stacks import AnswerDecoder
from sd_fairseq.plugin.models.switchable_decoder import SwitchableDecoder
from sd_fairseq.plugin.models.t5_stacks import SwitchableT5Decoder

PRECISIONS = {
    "model": None,
    "float32": Precision(torch.float32),
    "bfloat16": Precision(torch.bfloat16),
    "float16": Precision(torch.float16),
    "int8": Precision(torch.float32, int8=True),
}



class Family(NamedTuple):
    """How a family's models are run.

    Args:
        weights: their packed weights.
        read: reads a batch, by (model, weights, ``net_input``).
        first: reads layer 1 only and decides, by the same; None = the model's own encoder does.
        take: takes what the model's own encoder returned, by (model, weights, ``net_input``, ``encoder_out``).
        search: begins a search, by (model, weights, what was read, beam).
    """

    weights: Type[Any]
    read: Callable[..., Any]
    first: Optional[Callable[..., Any]]
    take: Callable[..., Any]
    search: Callable[..., Any]


FAMILIES: Dict[type, Family] = {
    SwitchableDecoder: Family(FastWeights, encode, read_first, flatten_encoder_out, start_search),
    SwitchableT5Decoder: Family(FastT5Weights, encode, read_first, flatten_encoder_out, start_search),
    AnswerDecoder: Family(FastLlamaWeights, read_prompts, None, take_prompts, AnswerSearch),
}


def why_not_fast(models: List[Any], args: Any) -> Optional[str]:
    """Tells why fairseq's own way of running a model has to be taken; None = it need not be.

    Args:
        models: of the generator.
        args: fairseq's generation options.
    """
    if len(models) != 1:
        return f"an ensemble of {len(models)} models"
    model = models[0]
    decoder = getattr(model, "decoder", None)
    if type(decoder) not in FAMILIES:
        return f"{type(model).__name__} is not a switchable BART, T5 or LLaMA"
    if getattr(args, "print_alignment", None) or getattr(args, "replace_unk", None) is not None:
        return "alignments are wanted"
    if getattr(args, "retain_dropout", False):
        return "--retain-dropout"
    if getattr(args, "score_reference", False):
        return "--score-reference"
    if any(getattr(decoder, f"project_{side}_dim", None) is not None for side in ("in", "out")):
        return "embeddings of another size than the decoder"
    if not hasattr(F, "scaled_dot_product_attention"):
        return f"torch {torch.__version__} has no scaled_dot_product_attention"
    return None


class FastModel(EnsembleModel):
    """One switchable model behind the interface of fairseq's EnsembleModel.

    Args:
        model: a switchable model of one of the families.
        precision: a key of :data:`PRECISIONS`; ``model`` = the model's own.
    """

    def __init__(self, model: Any, precision: str = "model"):
        super().__init__([model])
        self.precision_name = precision
        self.weights: Optional[FastWeights] = None
        self.beam = 1

    def set_decoder_beam_size(self, beam_size: int) -> None:
        """Notes the beam; the model itself is not told, so nothing of a search stays behind in it."""
        self.beam = beam_size

    def forward_encoder(self, net_input: Dict[str, Tensor]) -> List[Any]:
        """Reads a batch: what the search needs of it, in a list."""
        model, weights = self.single_model, self.pack()
        stages = getattr(model.encoder.policy, "stages", ())
        if len(stages) > 1 or not net_input["src_tokens"].device.type == "cpu":
            return [self.family.take(model, weights, net_input, model.encoder.forward_torchscript(net_input))]
        return [self.family.read(model, weights, net_input)]

    def decide(self, net_input: Dict[str, Any]) -> Tuple[Decisions, Optional[List[Tensor]]]:
        """Returns a batch's decisions and, where it can be used again, layer 1's output [S, C] of every sentence."""
        model = self.single_model
        if self.family.first is None or net_input["src_tokens"].device.type != "cpu":
            return model.encoder.decide(net_input["src_tokens"]), None
        decisions, states = self.family.first(model, self.pack(), net_input)
        return decisions, states

    def pack(self) -> Any:
        """Packs the weights, unless that has been done for these values."""
        model = self.single_model
        precision = PRECISIONS[self.precision_name] or Precision(model.encoder.embed_tokens.weight.dtype)
        self.weights = None  # no longer needed if it is of other values
        self.weights = packed_weights(model, precision, self.family.weights)
        return self.weights

    @property
    def family(self) -> Family:
        """The model's."""
        return FAMILIES[type(self.single_model.decoder)]

    def forward_decoder(
        self,
        tokens: Tensor,
        encoder_outs: List[Any],
        incremental_states: List[Dict[str, Any]],
        temperature: float = 1.0,
    ) -> Tuple[Tensor, None]:
        """Decodes one step.

        Args:
            tokens: LongTensor [R, step + 1].
            encoder_outs: what :meth:`forward_encoder` returned.
            incremental_states: the search's, one dictionary.
            temperature: divides the logits.

        Returns:
            Log-probabilities [R, V], float32; no attention.
        """
        state = incremental_states[0]
        if "search" not in state:
            source = encoder_outs[0]
            beam = tokens.size(0) // len(source.lengths)
            state["search"] = self.family.search(self.single_model, self.weights, source, beam)
        logits = state["search"].step(tokens)
        if temperature != 1.0:
            logits = logits.div_(temperature)
        return F.log_softmax(logits, dim=-1, dtype=torch.float32), None

    def reorder_encoder_out(self, encoder_outs: List[Any], new_order: Tensor) -> List[Any]:
        """Nothing to do: the decoder's state holds what it needs of the source."""
        return encoder_outs

    def reorder_incremental_state(self, incremental_states: List[Dict[str, Any]], new_order: Tensor) -> None:
        """Lets the caches follow the search."""
        incremental_states[0]["search"].reorder(new_order)
