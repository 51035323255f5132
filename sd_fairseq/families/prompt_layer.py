"""The layer of decoder-only models (LLaMA, GPT-2), cut into two sub-layers that run for the rows that keep them.

One layer does both: it reads the prompt, all tokens at once, and writes the answer, whose tokens attend over the
prompt's keys and values and over the answer so far. Queries in groups may share keys and values (H over H_kv heads).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_fairseq.execution.layer_rows import LayerRows
from sd_fairseq.execution.sublayers import KeptRows
from sd_fairseq.families.attention import Cache
from sd_fairseq.families.feed_forward import FeedForward


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder-only model; a family adds its own and says what its layers are made of.

    Args:
        dim: C.
        heads, key_heads, head_dim: H, H_kv (a divisor of H) and D.
        ffn_dim: F.
        layers: of the one stack.
        tied_head: the head is the embedding.
        eps: of the norms.
        dropout: of embeddings, attention weights and what a sub-layer adds.
    """

    dim: int
    heads: int
    key_heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    tied_head: bool = False
    eps: float = 1e-5
    dropout: float = 0.0
    biases: ClassVar[bool] = False

    @property
    def ffn_kind(self) -> str:
        """One of :data:`~sd_fairseq.families.feed_forward.KINDS`."""
        raise NotImplementedError

    @property
    def ffn_products(self) -> int:
        """Products of a feed-forward sub-layer, CF MACs a token each."""
        return 3 if self.ffn_kind.startswith("gated-") else 2

    def make_norm(self) -> nn.Module:
        """Returns a fresh norm."""
        raise NotImplementedError

    def make_ffn(self) -> nn.Module:
        """Returns a fresh feed-forward: [T, K, C] -> [T, K, C]."""
        return FeedForward(self.dim, self.ffn_dim, self.ffn_kind, biases=self.biases)

    def make_layer(self, index: int) -> PromptLayer:
        """Returns layer ``index`` (from 0)."""
        return PromptLayer(self, index)


class PromptTokens(NamedTuple):
    """What the layers must know about the prompt's tokens that are present.

    Args:
        mask: [B or 1, 1, S', S'], causal and padding, added to the scores.
        positions: LongTensor [B or 1, S'].
        padding: [B, 1, 1, S'] to be added to an answer's scores, or None.
        memory: layer -> keys and values [K, H_kv, S', D] of the rows that keep its attention; filled by the layers.
    """

    mask: Tensor
    positions: Tensor
    padding: Optional[Tensor]
    memory: Dict[int, Tuple[Tensor, Tensor]]


class PromptMemory(NamedTuple):
    """What an answer sees of the prompt in one layer.

    Args:
        keys, values: [K, H_kv, S', D] of the sentences that keep the layer's attention.
        padding: [K, 1, 1, S'] to be added to the scores, or None.
        length: of the whole prompt, where the answer's positions begin.
    """

    keys: Tensor
    values: Tensor
    padding: Optional[Tensor]
    length: int


class PromptLayer(nn.Module):
    """One layer; a family says in its shape what it is made of, and overrides :meth:`place`.

    Args:
        shape: the model's.
        index: of the layer, from 0: its caches' name.
    """

    def __init__(self, shape: DecoderShape, index: int):
        super().__init__()
        self.heads, self.key_heads, self.head_dim = shape.heads, shape.key_heads, shape.head_dim
        self.dropout, self.index = shape.dropout, index
        inner, keys, bias = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim, shape.biases
        self.q_proj = nn.Linear(shape.dim, inner, bias=bias)
        self.k_proj = nn.Linear(shape.dim, keys, bias=bias)
        self.v_proj = nn.Linear(shape.dim, keys, bias=bias)
        self.out_proj = nn.Linear(inner, shape.dim, bias=bias)
        self.self_attn_layer_norm = shape.make_norm()
        self.ffn = shape.make_ffn()
        self.final_layer_norm = shape.make_norm()

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """Puts positions into queries or keys [K, H, T, D]; here they are in the embeddings.

        Args:
            x: queries or keys.
            positions: LongTensor [K or 1, T]; padding in front of a prompt counts, so only distances mean something.
        """
        return x

    def read_prompt(self, x: Tensor, tokens: PromptTokens, rows: LayerRows) -> Tensor:
        """Runs the layer over the prompt: [S', B, C] -> [S', B, C]; leaves keys and values in the memory."""

        def attention(part: Tensor, kept: KeptRows) -> Tensor:
            mask, positions = select_shared(tokens.mask, kept), select_shared(tokens.positions, kept)
            queries, keys, values = self._project(part, positions)
            tokens.memory[self.index] = keys, values
            scores = self._scores(queries, keys, 1) + mask  # [K, H, S', S']
            return self._add_attention(part, torch.softmax(scores, dim=-1, dtype=torch.float32), [values], 1)

        x = rows.run("encoder_attention", attention, x, rows.attention, None)
        return rows.run("encoder_ffn", self._run_ffn, x, rows.ffn, None)

    def forward(
        self,
        x: Tensor,
        encoder_out: Optional[PromptMemory],
        encoder_padding_mask: Optional[Tensor],
        incremental_state: Optional[Dict[str, Cache]] = None,
        self_attn_mask: Optional[Tensor] = None,
        self_attn_padding_mask: Optional[Tensor] = None,
        need_attn: bool = False,
        rows: LayerRows = LayerRows(),
    ) -> Tuple[Tensor, None]:
        """Runs the layer over the answer; the signature is every family's.

        Args:
            x: [T, R, C]; R = sentences * beam rows.
            encoder_out: the prompt's memory; None = no sentence keeps the layer's attention.
            encoder_padding_mask: unused, the memory has its own.
            incremental_state: caches of a search, or None in teacher forcing.
            self_attn_mask: [1, 1, T, tokens so far], causal; zeros in a search.
            self_attn_padding_mask, need_attn: unused; padding stands at the end, and no weights are returned.
            rows: who keeps what.

        Returns:
            [T, R, C] and None.
        """

        def attention(part: Tensor, _: KeptRows) -> Tensor:
            assert encoder_out is not None and self_attn_mask is not None, "rows that keep attention have a memory"
            return self._answer(part, encoder_out, self_attn_mask, incremental_state, rows.beam)

        x = rows.run("decoder_attention", attention, x, rows.attention, None)
        return rows.run("decoder_ffn", self._run_ffn, x, rows.ffn, None), None

    def cache_of(self, site: str, incremental_state: Optional[Dict[str, Cache]]) -> Optional[Cache]:
        """Returns the cache of the answer (``decoder_attention``) or the prompt (``decoder_cross_attention``)."""
        return None if incremental_state is None else incremental_state.setdefault(f"layer {self.index} {site}", {})

    def _answer(
        self, x: Tensor, memory: PromptMemory, mask: Tensor, state: Optional[Dict[str, Cache]], beam: int
    ) -> Tensor:
        """Attention of an answer over prompt and answer, with its residual: [T, K, C] -> [T, K, C]."""
        steps, so_far = x.size(0), mask.size(-1)
        positions = memory.length + torch.arange(so_far - steps, so_far, device=x.device).unsqueeze(0)  # [1, T]
        queries, keys, values = self._project(x, positions)
        own, prompt = (self.cache_of(f"decoder_{kind}attention", state) for kind in ("", "cross_"))
        if own is not None and prompt is not None:
            if own:  # the prompt's rows are the search's then, the memory's are not
                keys, values = (append(own[name], one) for name, one in (("keys", keys), ("values", values)))
                memory = memory._replace(**prompt)  # type: ignore[arg-type]
            own.update(keys=keys, values=values)
            prompt.update(keys=memory.keys, values=memory.values, padding=memory.padding)
        before = self._scores(queries, memory.keys, beam)  # [K, H, T, S']
        if memory.padding is not None:
            before = before + memory.padding.repeat_interleave(beam, dim=0)
        scores = torch.cat([before, self._scores(queries, keys, 1) + mask], dim=-1)  # [K, H, T, S' + tokens so far]
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
        return self._add_attention(x, weights, [memory.values, values], beam)

    def _project(self, x: Tensor, positions: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Returns scaled queries [K, H, T, D], keys and values [K, H_kv, T, D]; queries and keys placed."""
        x = self.self_attn_layer_norm(x)

        def split(projected: Tensor) -> Tensor:
            return projected.view(x.size(0), x.size(1), -1, self.head_dim).permute(1, 2, 0, 3)

        queries = self.place(split(self.q_proj(x)), positions) * self.head_dim**-0.5
        return queries, self.place(split(self.k_proj(x)), positions), split(self.v_proj(x))

    def _scores(self, queries: Tensor, keys: Tensor, beam: int) -> Tensor:
        """[K, H, T, D] and [K / beam, H_kv, S, D] -> [K, H, T, S]."""
        rows, heads, steps, _ = queries.size()
        return self._apart(self._together(queries, beam) @ keys.transpose(2, 3), rows, steps, beam)

    def _together(self, x: Tensor, beam: int) -> Tensor:
        """Lets all that share keys stand side by side: [K, H, T, N] -> [K / beam, H_kv, beam * H / H_kv * T, N]."""
        rows, heads, steps, width = x.size()
        x = x.view(rows // beam, beam, self.key_heads, heads // self.key_heads, steps, width).transpose(1, 2)
        return x.reshape(rows // beam, self.key_heads, -1, width)

    def _apart(self, x: Tensor, rows: int, steps: int, beam: int) -> Tensor:
        """The inverse: [K / beam, H_kv, beam * H / H_kv * T, N] -> [K, H, T, N]."""
        groups = self.heads // self.key_heads
        x = x.view(rows // beam, self.key_heads, beam, groups, steps, x.size(-1)).transpose(1, 2)
        return x.reshape(rows, self.heads, steps, x.size(-1))

    def _add_attention(self, x: Tensor, weights: Tensor, values: list, beam: int) -> Tensor:
        """Mixes values by their weights and adds the projection: [T, K, C] -> [T, K, C].

        Args:
            x: the sub-layer's input.
            weights: [K, H, T, all keys], float32.
            values: the prompt's [K / beam, H_kv, S', D] and the answer's [K, H_kv, tokens, D]; or one of them.
            beam: rows that share the first.
        """
        weights = F.dropout(weights.to(x.dtype), self.dropout, self.training)
        parts = weights.split([one.size(2) for one in values], dim=-1)
        mixed: Tensor = torch.zeros((), dtype=x.dtype, device=x.device)
        for part, value, shared in zip(parts, values, (beam, 1)):
            mixed = mixed + self._apart(self._together(part, shared) @ value, x.size(1), x.size(0), shared)
        joined = mixed.permute(2, 0, 1, 3).reshape(x.size(0), x.size(1), -1)  # [T, K, A]
        return x + F.dropout(self.out_proj(joined), self.dropout, self.training)

    def _run_ffn(self, x: Tensor, _: KeptRows = None) -> Tensor:
        """Feed-forward with its norm and residual: [T, K, C] -> [T, K, C]."""
        return x + F.dropout(self.ffn(self.final_layer_norm(x)), self.dropout, self.training)


def select_shared(value: Tensor, rows: KeptRows) -> Tensor:
    """Selects the kept rows of [B, ...]; what all rows share [1, ...] stays."""
    return value if rows is None or value.size(0) == 1 else value.index_select(0, rows)


def append(before: Optional[Tensor], new: Tensor) -> Tensor:
    """Appends along the tokens: [K, H_kv, S, D] and [K, H_kv, T, D] -> [K, H_kv, S + T, D]."""
    assert before is not None, "a cache that is not empty holds keys and values"
    return torch.cat([before, new], dim=2)
