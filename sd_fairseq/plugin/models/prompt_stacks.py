"""A decoder-only model behind fairseq's encoder-decoder interfaces: the source is its prompt, the target its answer.

The encoder reads the prompt but for its last token, which is the answer's first input in place of fairseq's leading
end-of-sentence symbol; together the two are one sequence. Both run the same layers, registered in the decoder only.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.models import FairseqEncoder, FairseqIncrementalDecoder
from torch import Tensor, nn

from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.execution.decoder_plan import compact_order
from sd_fairseq.execution.layer_rows import LayerRows
from sd_fairseq.execution.sublayers import find_kept_rows, select_rows
from sd_fairseq.families.attention import causal_scores, padding_scores
from sd_fairseq.families.prompt_layer import DecoderShape, PromptMemory, PromptTokens
from sd_fairseq.plugin.models.decoder_flow import IncrementalState
from sd_fairseq.plugin.models.text_stacks import TextDecoder, TextEncoder


class AnswerDecoder(TextDecoder):
    """Writes the answer along the prompt's decisions.

    Args:
        shape: the model's sizes.
        dictionary: fairseq dictionary; ids behind the model's own rows (an added padding symbol) are never chosen.
        embed_tokens: the embedding.
        max_positions: longest target, in tokens.
    """

    attention_layer = -1  # no cross-attention whose weights could be shown

    def __init__(self, shape: DecoderShape, dictionary: Any, embed_tokens: nn.Embedding, max_positions: int):
        FairseqIncrementalDecoder.__init__(self, dictionary)
        self.longest, self.dropout, self.num_layers = max_positions, shape.dropout, shape.layers
        self.padding_idx, self.eos = dictionary.pad(), dictionary.eos()
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(shape.make_layer(index) for index in range(shape.layers))
        self.layer_norm = shape.make_norm()
        self.output_projection: Optional[nn.Linear] = None
        if not shape.tied_head:
            self.output_projection = nn.Linear(shape.dim, embed_tokens.num_embeddings, bias=False)

    def embed_target(
        self, tokens: Tensor, incremental_state: Optional[IncrementalState], encoder_out: Dict[str, list]
    ) -> Tuple[Tensor, None]:
        """As every flow's; the leading end-of-sentence symbol becomes the prompt's last token."""
        if incremental_state is None or tokens.size(1) == 1:
            last = encoder_out["last_tokens"][0]
            last = last.repeat_interleave(tokens.size(0) // last.size(0))  # [R]
            tokens = torch.cat([last.unsqueeze(1), tokens[:, 1:]], dim=1)
        positions = self._starts(encoder_out, tokens.size(0), incremental_state).unsqueeze(1)
        positions = positions + torch.arange(tokens.size(1), device=tokens.device)  # [R, T]
        if incremental_state is not None:
            tokens, positions = tokens[:, -1:], positions[:, -1:]
        return self.embed(tokens, positions).transpose(0, 1), None  # [T, R, C]

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Embeds tokens; an added symbol, which is padding, as the first row, and nobody sees it.

        Args:
            tokens: LongTensor [R, T].
            positions: LongTensor [R or 1, T], where they stand in the sequence; of no use where the layers place them.

        Returns:
            [R, T, C].
        """
        embedded = self.embed_tokens(tokens.masked_fill(tokens >= self.embed_tokens.num_embeddings, 0))
        return F.dropout(embedded, self.dropout, self.training)

    def _starts(self, encoder_out: Dict[str, list], rows: int, incremental_state: Optional[IncrementalState]) -> Tensor:
        """Returns the position of every row's first token, LongTensor [R]; a search keeps them from its first step."""
        saved: Any = None
        if incremental_state is not None:
            saved = self.get_incremental_state(incremental_state, "starts")
        if saved:
            return saved["starts"]
        lengths = encoder_out["src_lengths"][0].view(-1).long()  # [B]
        starts = lengths.repeat_interleave(rows // lengths.size(0))
        if incremental_state is not None:
            self._keep_starts(incremental_state, starts)
        return starts

    def _keep_starts(self, incremental_state: IncrementalState, starts: Tensor) -> None:
        self.set_incremental_state(incremental_state, "starts", {"starts": starts})

    def self_attention_mask(self, x: Tensor, steps: int, causal: bool) -> Tensor:
        """Returns the causal mask [1, 1, T, tokens so far], zeros in a search."""
        return causal_scores(steps, x.dtype, x.device) if causal else x.new_zeros(1, 1, x.size(0), steps)

    def source_of(self, encoder_out: Dict[str, list], layer: int) -> Optional[PromptMemory]:
        """What this layer's answer sees of the prompt."""
        return encoder_out["prompt"][layer]

    def finish(self, x: Tensor) -> Tensor:
        """The last norm: [T, R, C] -> [R, T, C]."""
        return self.layer_norm(x).transpose(0, 1)

    def reorder_incremental_state_scripting(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """As every flow's; the rows' first positions go along."""
        starts: Any = self.get_incremental_state(incremental_state, "starts")
        if starts:
            self._keep_starts(incremental_state, starts["starts"].index_select(0, new_order))
        super().reorder_incremental_state_scripting(incremental_state, new_order)

    def output_layer(self, features: Tensor, **unused: Any) -> Tensor:
        """[R, T, C] -> [R, T, V]; an added symbol gets its position's smallest logit, finite for label smoothing."""
        head = self.embed_tokens if self.output_projection is None else self.output_projection
        logits = F.linear(features, head.weight)
        added = len(self.dictionary) - logits.size(-1)
        if added <= 0:
            return logits
        return torch.cat([logits, logits.min(dim=-1, keepdim=True).values.expand(*logits.shape[:-1], added)], dim=-1)


class PromptEncoder(TextEncoder):
    """Reads the prompt, decides and drops tokens.

    Args:
        shape: the model's sizes.
        decoder: whose layers and embedding it runs.
        space: a tied decision space.
        policy: who decides; None = always dense.
        max_positions: longest source, in tokens.
    """

    def __init__(
        self,
        shape: DecoderShape,
        decoder: AnswerDecoder,
        space: DecisionSpace,
        policy: Optional[nn.Module],
        max_positions: int,
    ):
        FairseqEncoder.__init__(self, decoder.dictionary)
        # plain references: the decoder registers them, and a checkpoint holds them once
        self.__dict__.update(layers=decoder.layers, embed_tokens=decoder.embed_tokens, decoder=decoder)
        self.space, self.policy, self.longest = space, policy, max_positions
        self.padding_idx, self.eps, self.num_layers = decoder.padding_idx, shape.eps, shape.layers

    def choose_tokens(self, src_tokens: Tensor) -> Tensor:
        """Left-pads the prompt and leaves out its last token and the end-of-sentence symbol: [B, S] -> [B, S - 2]."""
        aligned = align_right(src_tokens, self.padding_idx)
        return aligned[:, :-2] if aligned.size(1) > 2 else torch.full_like(aligned[:, :1], self.padding_idx)

    def embed_source(
        self, src_tokens: Tensor, token_embeddings: Optional[Tensor], padding_mask: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Embeds as the decoder does; padding in front of a prompt takes no position."""
        if padding_mask is None:
            positions = torch.arange(src_tokens.size(1), device=src_tokens.device).unsqueeze(0)  # [1, S]
        else:
            positions = ((~padding_mask).cumsum(dim=1) - 1).clamp(min=0)  # [B, S]
        embedded = self.decoder.embed(src_tokens, positions)  # [B, S, C]
        return embedded.transpose(0, 1), embedded

    def describe_tokens(self, x: Tensor, padding_mask: Optional[Tensor], positions: Optional[Tensor]) -> PromptTokens:
        """Masks and positions of the tokens that are present, and a place for the layers' keys and values."""
        mask = causal_scores(x.size(0), x.dtype, x.device)
        padding = None if padding_mask is None else padding_scores(padding_mask, x.dtype)
        if padding is not None:
            mask = mask + padding / 2  # half: two lowest numbers would add up to -inf, and a row of them to NaN
        if positions is None:
            positions = torch.arange(x.size(0), device=x.device).unsqueeze(0)
        return PromptTokens(mask, positions, padding, {})

    def run_layer(self, index: int, x: Tensor, tokens: PromptTokens, rows: LayerRows) -> Tensor:
        """Runs a layer; ``tokens`` is what :meth:`describe_tokens` returned."""
        return self.layers[index].read_prompt(x, tokens, rows)

    def more_outputs(self, src_tokens: Tensor, first: PromptTokens, rest: PromptTokens, rows: Any) -> Dict[str, list]:
        """The prompt's last tokens [[B]], and its memory, one a layer.

        Args:
            src_tokens: LongTensor [B, S], the whole source.
            first, rest: what layer 1 and the others left.
            rows: layer -> its rows.
        """
        length = first.positions.size(1)
        memories: List[Optional[PromptMemory]] = []
        for index in range(len(self.layers)):
            tokens = rest if index else first
            if index not in tokens.memory:
                memories.append(None)
                continue
            padding = tokens.padding if index == 0 else select_rows(tokens.padding, rows.of_layer(index).attention)
            memories.append(PromptMemory(*tokens.memory[index], padding, length))
        last = align_right(src_tokens, self.padding_idx)[:, -2]
        return {"prompt": memories, "last_tokens": [last]}

    def reorder_encoder_out(self, encoder_out: Dict[str, list], new_order: Tensor) -> Dict[str, list]:
        """As every flow's; the memories hold the sentences that keep their layer's attention only."""
        reordered = super().reorder_encoder_out(encoder_out, new_order)
        if reordered is encoder_out:
            return encoder_out
        before, after = (find_kept_rows(one["decisions"][0].encoder_attention) for one in (encoder_out, reordered))
        count = encoder_out["last_tokens"][0].size(0)
        reordered["last_tokens"] = [encoder_out["last_tokens"][0].index_select(0, new_order)]
        reordered["prompt"] = [
            None if memory is None else select_memory(memory, compact_order(old, new, new_order, count))
            for memory, old, new in zip(encoder_out["prompt"], before, after)
        ]
        return reordered


def select_memory(memory: PromptMemory, order: Tensor) -> PromptMemory:
    """Selects the sentences ``order`` of a memory."""
    keys, values = memory.keys.index_select(0, order), memory.values.index_select(0, order)
    return PromptMemory(keys, values, select_rows(memory.padding, order), memory.length)


def align_right(tokens: Tensor, padding: int) -> Tensor:
    """Moves all padding to the left: [B, S] -> [B, S]."""
    order = torch.argsort(tokens.ne(padding).to(torch.uint8), dim=1, stable=True)
    return tokens.gather(1, order)
