"""Who decides: the policy network and its distribution over paths (section 3.2, Eq. 1-3).

Choice: the network is Linear(C, hidden) -> LayerNorm -> ReLU -> heads; the paper says "a one-layer MLP with layer
normalization and ReLU". All its mathematics is float32, whatever the backbone's precision.
Choice: beside that state, or in its place, it can be given how long the source is (``--sd-policy-input``). Where FLOPs
are counted over the corpus the length is what a decision pays by, and a mean over the tokens tells it only indirectly;
alone it is a control: a policy that reads the text should beat one that does not. So is a policy that reads nothing: it
learns one path for all.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Callable, ContextManager, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_fairseq.decision.budgets import KNOTS, BudgetRange
from sd_fairseq.decision.decisions import Decisions, DecisionSpace
from sd_fairseq.decision.noise import Noise, hash_tokens

INPUTS = ("state", "length", "state+length", "nothing")
LEAST_DEVIATION = 1e-3  # of a dimension that all documents share
LENGTH_CENTRE, LENGTH_SCALE = 128.0, 4.0  # tokens; a doubling weighs as some dozens of a state's dimensions do


def input_width(inputs: str, dim: int) -> int:
    """Returns how many figures a policy reads: of the state (``dim``), of the length (1), both, or a 1 of nothing.

    Raises:
        ValueError: none of :data:`INPUTS`.
    """
    if inputs not in INPUTS:
        raise ValueError(f"policy input {inputs!r} is not one of {', '.join(INPUTS)}")
    return dim * ("state" in inputs) + ("length" in inputs) or 1


def policy_input(inputs: str, state: Tensor, lengths: Tensor) -> Tensor:
    """Builds what a policy reads, float32 [B, width].

    Args:
        inputs: one of :data:`INPUTS`.
        state: float32 [B, C].
        lengths: [B], source tokens with their end-of-sentence symbol.
    """
    if inputs == "state":
        return state
    if inputs == "nothing":
        return torch.ones_like(state[:, :1])
    length = LENGTH_SCALE * torch.log2(lengths.float() / LENGTH_CENTRE).unsqueeze(1)  # [B, 1]
    return length if inputs == "length" else torch.cat([state, length], dim=1)


class Float32Module(nn.Module):
    """A module whose floating-point tensors stay float32 when the model around it is cast to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args, **kwargs):
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.is_floating_point() and moved.dtype != tensor.dtype else moved

        return super()._apply(move_only, *args, **kwargs)


def without_autocast(device: torch.device) -> ContextManager:
    """Keeps automatic mixed precision (fairseq's ``--amp``) out: it would run float32 layers in half precision."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


@dataclass(frozen=True)
class PolicyDistribution:
    """Independent Bernoulli switches and one categorical token strategy per example (Eq. 2-3).

    Args:
        space: what the outputs mean.
        keep_logits: float32 [B, num_switches]; sigmoid = probability to keep.
        token_logits: float32 [B, J].
    """

    space: DecisionSpace
    keep_logits: Tensor
    token_logits: Tensor

    @property
    def keep_probability(self) -> Tensor:
        """[B, num_switches]."""
        return torch.sigmoid(self.keep_logits)

    @property
    def token_probability(self) -> Tensor:
        """[B, J], rows sum to 1."""
        return torch.softmax(self.token_logits, dim=-1)

    def sample(self, noise: Optional[Noise] = None) -> Decisions:
        """Draws a path per example from torch's generator, or from given noise."""
        noise = noise or Noise.draw(self.keep_logits.size(0), self.space, self.keep_logits.device)
        keep = noise.switches < self.keep_probability
        gumbel = -torch.log(-torch.log(noise.tokens.clamp(1e-9, 1 - 1e-7)))
        return self.space.to_decisions(keep, (self.token_logits + gumbel).argmax(dim=-1))

    def mode(self) -> Decisions:
        """The deployed path: keep where p >= 0.5, the most probable token strategy. Nothing is drawn."""
        return self.space.to_decisions(self.keep_logits >= 0, self.token_logits.argmax(dim=-1))

    def log_prob(self, decisions: Decisions) -> Tensor:
        """Returns log pi(path), float32 [B] (the logarithm of Eq. 2 times Eq. 3)."""
        signs = self.space.to_keep(decisions).to(self.keep_logits.dtype) * 2 - 1
        switches = F.logsigmoid(signs * self.keep_logits).sum(dim=-1)
        tokens = torch.log_softmax(self.token_logits, dim=-1).gather(1, decisions.token_choice.unsqueeze(1))
        return switches + tokens.squeeze(1)

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, float32 [B]."""
        p = self.keep_probability
        switches = -(p * F.logsigmoid(self.keep_logits) + (1 - p) * F.logsigmoid(-self.keep_logits)).sum(dim=-1)
        tokens = -(self.token_probability * torch.log_softmax(self.token_logits, dim=-1)).sum(dim=-1)
        return switches + tokens

    def bounded(self, bound: float) -> "PolicyDistribution":
        """Mixes every probability with its opposite: p <- a p + (1 - a)(1 - p), as BlockDrop does while exploring.

        Args:
            bound: a in (0.5, 1]; 1 changes nothing. The token strategies are mixed with the uniform distribution.
        """
        if bound == 1.0:
            return self
        p = bound * self.keep_probability + (1 - bound) * (1 - self.keep_probability)
        tokens = bound * self.token_probability + (1 - bound) / self.token_logits.size(-1)
        return PolicyDistribution(self.space, torch.logit(p, eps=1e-7), torch.log(tokens))

    def sharpened(self, temperature: float) -> "PolicyDistribution":
        """Divides the logits by ``temperature`` (< 1): samples close to the mode, that change before the mode does."""
        return PolicyDistribution(self.space, self.keep_logits / temperature, self.token_logits / temperature)


class PolicyNetwork(Float32Module):
    """Reads the masked mean of encoder layer 1's output, or what ``inputs`` says; decides the whole path (section 3.2).

    Args:
        input_size: C, the encoder's embedding dimension.
        space: the decision space.
        hidden_size: units of the hidden layer; 0 = C.
        initial_keep: probability that a fresh policy decides as its initial path does, in (0.5, 1).
        initial_path: mode path of a fresh policy, of one example; None = keep everything.
        inputs: what it reads, one of :data:`INPUTS`.
        budgets: range of FLOPs budgets that it serves; None = the one that it learned.

    Attributes:
        shift: buffer [1], or [KNOTS] of a policy for a range, added to every logit that keeps: > 0 skips less. 0,
            unless training has kept the budget with it, or a calibration has set it.
        budget: scalar buffer, the budget that is served, of a policy for a range.
    """

    shift: Tensor
    budget: Tensor

    def __init__(
        self,
        input_size: int,
        space: DecisionSpace,
        hidden_size: int = 0,
        initial_keep: float = 0.95,
        initial_path: Optional[Decisions] = None,
        inputs: str = "state",
        budgets: Optional[BudgetRange] = None,
    ):
        super().__init__()
        if hidden_size < 0:
            raise ValueError(f"hidden size {hidden_size} of the policy is not 0 (as the embedding) or more")
        if not 0.5 < initial_keep < 1:
            raise ValueError(f"initial keep-probability {initial_keep} is not in (0.5, 1)")
        self.space, self.inputs, self.budgets = space, inputs, budgets
        self.initial_keep, self.initial_path = initial_keep, initial_path
        self.outputs = space.num_switches + len(space.token_strategies)
        self.hidden = nn.Linear(input_width(inputs, input_size), hidden_size or input_size)
        self.layer_norm = nn.LayerNorm(hidden_size or input_size)
        self.heads = nn.Linear(hidden_size or input_size, self.outputs * (KNOTS if budgets else 1))
        self.register_buffer("shift", torch.zeros(KNOTS if budgets else 1))
        self._served: Optional[Tensor] = None
        if budgets is not None:
            self.register_buffer("budget", torch.tensor(budgets.default))
        self.reset_parameters()

    @property
    def stages(self) -> Tuple[int, ...]:
        """Encoder layers (from 1) after which the policy is asked."""
        return (1,)

    def shifts(self) -> List[Tensor]:
        """Lists the shifts of all its networks, to be set alike."""
        return [self.shift]

    def reset_parameters(self) -> None:
        """Makes a fresh policy: almost the initial path, whatever the input."""
        nn.init.xavier_uniform_(self.hidden.weight)
        nn.init.zeros_(self.hidden.bias)
        self.layer_norm.reset_parameters()
        nn.init.normal_(self.heads.weight, std=0.02)
        with torch.no_grad():
            bias = initial_bias(self.space, self.initial_keep, self.initial_path)
            self.heads.bias.copy_(bias.repeat(KNOTS if self.budgets else 1))

    def is_fresh(self) -> bool:
        """Tells whether nothing has been learned yet: a step of any learner moves these biases."""
        bias = initial_bias(self.space, self.initial_keep, self.initial_path).to(self.heads.bias)
        return bool(torch.equal(self.heads.bias, bias.repeat(KNOTS if self.budgets else 1)))

    def tell_apart(self, mean: Tensor, deviation: Tensor) -> None:
        """Lets the first layer start from what sets documents apart: it reads (state - mean) / deviation from here on.

        Choice: the states of a pretrained encoder are much alike (cosines of 0.93 between tasks), and so are then the
        hidden units of all documents: whatever is learned of one moves the decisions for all. The first layer's
        weights and biases take the standardisation in, so that nothing is added to the network (a start that depends
        on the data, as Kraehenbuehl et al., ICLR 2016).

        Args:
            mean, deviation: float32 [width], over documents.
        """
        with torch.no_grad():
            self.hidden.weight.div_(deviation.clamp(min=LEAST_DEVIATION))
            self.hidden.bias.sub_(self.hidden.weight @ mean)

    @contextmanager
    def serving(self, budgets: Union[float, Tensor]) -> Iterator[None]:
        """Serves other budgets than :attr:`budget` in the block: one for all examples, or one for each [B]."""
        before, self._served = self._served, torch.as_tensor(budgets, dtype=torch.float32)
        try:
            yield
        finally:
            self._served = before

    def with_budget(self, state: Tensor, src_tokens: Tensor, padding_mask: Tensor) -> Tensor:
        """Appends each document's budget, a knot's, to the policy's input, if it serves a range.

        Args:
            state: [B, width].
            src_tokens: LongTensor [B, S].
            padding_mask: BoolTensor [B, S], True = padding.

        Returns:
            [B, width + 1], or ``state``.
        """
        if self.budgets is None:
            return state
        budgets = (self.budget if self._served is None else self._served).to(state).expand(state.size(0))
        uniform = hash_tokens(src_tokens, padding_mask, 1).double() / 2147483647
        return torch.cat([state, self.budgets.share_out(budgets, uniform).to(state).unsqueeze(1)], dim=1)

    def stage_logits(self, stage: int, state: Tensor) -> Tensor:
        """Returns [B, num_switches + J] logits from the state after encoder layer ``stage``.

        Args:
            stage: 1.
            state: [B, width], a knot's budget behind it where the policy serves a range.
        """
        with without_autocast(state.device):
            state = state.float()
            read = state if self.budgets is None else state[:, :-1]
            logits = self.heads(torch.relu(self.layer_norm(self.hidden(read))))
            shift = self.shift  # [1]
            if self.budgets is not None:
                knots = self.budgets.indices(state[:, -1])  # [B]
                rows = torch.arange(state.size(0), device=state.device)
                logits = logits.view(-1, KNOTS, self.outputs)[rows, knots]
                shift = shift[knots].unsqueeze(1)  # [B, 1]
            return logits + shift * keeping_outputs(self.space, logits.device)

    def forward(self, states: Sequence[Tensor]) -> PolicyDistribution:
        """Maps the detached states (one [B, width] a stage) to a distribution over paths."""
        logits = self.stage_logits(1, states[0])
        return split_logits(self.space, logits)


def keeping_outputs(space: DecisionSpace, device: torch.device) -> Tensor:
    """Returns float32 [num_switches + J]: 1 for the outputs whose larger values keep more, the switches and "keep"."""
    keeping = torch.zeros(space.num_switches + len(space.token_strategies), device=device)
    keeping[: space.num_switches + 1] = 1.0
    return keeping


def split_logits(space: DecisionSpace, logits: Tensor) -> PolicyDistribution:
    """Splits [B, num_switches + J] logits into the two kinds of decision."""
    return PolicyDistribution(space, logits[:, : space.num_switches], logits[:, space.num_switches :])


def initial_bias(space: DecisionSpace, probability: float, path: Optional[Decisions] = None) -> Tensor:
    """Returns [num_switches + J] biases that give every decision of ``path`` (None = keep all) this probability."""
    path = path or space.keep_all(1, torch.device("cpu"))
    logit = math.log(probability / (1 - probability))
    others = len(space.token_strategies) - 1
    tokens = torch.zeros(others + 1)
    if others:
        tokens[path.token_choice[0]] = logit + math.log(others)
    return torch.cat([(space.to_keep(path)[0].float() * 2 - 1) * logit, tokens])
