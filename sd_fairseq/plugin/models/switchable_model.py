"""What every family's fairseq model shares: the policy learner, decisions in the output, checkpoints with a policy."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from typing import Any, Dict, Iterable, Optional

import torch
from omegaconf import OmegaConf, open_dict

from sd_fairseq.cost.path_flops import ModelShape
from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.learning.policy_learner import PolicyLearner, trainable_parameters
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.preflight import is_training
from sd_fairseq.plugin.models.conversion import flat_options
from sd_fairseq.plugin.models.options import build_decoder_rule, fill_defaults, model_shape

logger = logging.getLogger(__name__)
POLICY_KEYS = ("encoder.policy.", "policy_learner.")
BUDGET_KEY = "encoder.policy.budget"


def prepare_options(args: Any, task: Any) -> Any:
    """Fills in the defaults of the ``sd_*`` options, and the task's token strategies.

    Args:
        args: the options of a model that is about to be built; changed in place.
        task: fairseq's.

    Returns:
        ``args`` as a Namespace, as fairseq-train gives them.
    """
    with open_dict(args) if OmegaConf.is_config(args) else nullcontext():
        fill_defaults(args)
        if getattr(args, "sd_token_strategies", None) is None:
            args.sd_token_strategies = getattr(getattr(task, "cfg", None), "sd_token_strategies", None)
    return flat_options(args) if OmegaConf.is_config(args) else args


def stored_policy(keys: Iterable[str]) -> Optional[str]:
    """Tells by the names of a checkpoint's weights which kind of ``--sd-policy`` it holds; None = none that learns."""
    names = {key.split(".")[2] for key in keys if key.startswith("encoder.policy.")}
    return "layerwise" if "networks" in names else "network" if names else None


class SwitchableModel:
    """Put before a fairseq encoder-decoder model whose encoder is an
    :class:`~sd_fairseq.execution.encoder_flow.EncoderFlow`.
    """

    args: Any
    encoder: Any
    decoder: Any
    policy_learner: Optional[PolicyLearner]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's; ``sd_flops_budget`` is the budget to serve: the training's own stands under that name, too."""
        if "sd_flops_budget" in kwargs:
            kwargs["sd_served_budget"] = kwargs.pop("sd_flops_budget")
        return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    def add_rule(self) -> None:
        """Gives the decoder its rule."""
        self.decoder.rule = build_decoder_rule(self.args, self.space, self.decoder)

    def add_policy_learner(self) -> None:
        """Makes a fresh policy and its learner, once the stacks are built and initialised."""
        policy = self.encoder.policy
        self.policy_learner = None
        if policy is not None and trainable_parameters(policy):
            policy.reset_parameters()  # the family's initialisation has gone over it
            policy.requires_grad_(False)  # moved by the policy learner, not by the backbone's optimizer
            self.policy_learner = PolicyLearner(sum(p.numel() for p in trainable_parameters(policy)))

    def log_space(self) -> None:
        """Says what there is to decide."""
        switches, strategies = self.space.num_switches, len(self.space.token_strategies)
        decided_by = self.args.sd_policy
        logger.info("%d switches and %d token strategies, decided by: %s", switches, strategies, decided_by)

    @property
    def space(self) -> DecisionSpace:
        """The decision space."""
        return self.encoder.space

    @property
    def shape(self) -> ModelShape:
        """The dimensions that the closed-form costs need."""
        return model_shape(self.args, len(self.decoder.dictionary), self.encoder.policy)

    @staticmethod
    def add_decisions(extra: Dict[str, Any], encoder_out: Dict[str, list]) -> None:
        """Puts what the encoder decided into the decoder's ``extra``."""
        extra["decisions"] = encoder_out["decisions"][0]
        extra["policy_states"] = encoder_out["policy_states"]
        extra["switch_gates"] = encoder_out["switch_gates"]

    def set_beam_size(self, beam: int) -> None:
        """Lets the hypotheses of a sentence share its encoder row.

        Nothing is stored on the attention modules, so a forward pass after a search is right, which it is not in
        fairseq's BART.
        """
        self.encoder.shares_beam_rows = beam > 1

    @staticmethod
    def check_finite(state_dict: Dict[str, Any]) -> None:
        """Refuses weights that are no numbers.

        Raises:
            InputError: naming the first such tensor.
        """
        for key, value in state_dict.items():
            if torch.is_tensor(value) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"checkpoint holds values that are not finite (NaN or infinity) in {key}")

    def fill_policy(self, state_dict: Dict[str, Any], prefix: str) -> None:
        """Gives a state dictionary without a policy a fresh one.

        Raises:
            InputError: a policy of another decision space.
        """
        self._make_room(state_dict, prefix)
        own = {
            k: v
            for k, v in self.state_dict().items()  # type: ignore[attr-defined]
            if k.startswith(POLICY_KEYS)
        }
        self._drop_another_policy(state_dict, prefix, own)
        missing = [key for key in own if prefix + key not in state_dict]
        for key, value in own.items():
            found = state_dict.get(prefix + key)
            if found is not None and found.shape != value.shape:
                raise InputError(
                    f"checkpoint's policy has {key} of shape {tuple(found.shape)}, this decision space needs "
                    f"{tuple(value.shape)}; give the same --sd-policy, --sd-policy-input, --sd-budget-range, "
                    "--sd-space and --sd-token-strategies"
                )
            anew = key.startswith("policy_learner.") and getattr(self.args, "sd_fresh_learner", False)
            if found is None or anew or (key == BUDGET_KEY and self._serves_another(float(found))):
                state_dict[prefix + key] = value.clone()
        for key in [k for k in state_dict if k.startswith(tuple(prefix + p for p in POLICY_KEYS))]:
            if key[len(prefix) :] not in own:
                del state_dict[key]  # another kind of policy (random, dense) takes its place
        if any(key.startswith("encoder.policy.") and not key.endswith(".shift") for key in missing):
            logger.info("checkpoint has no policy: starting with a fresh one, every switch open")

    def _make_room(self, state_dict: Dict[str, Any], prefix: str) -> None:
        """Lets a training that continues find the documents of its window again."""
        recent = state_dict.get(prefix + "policy_learner.recent.states")
        if recent is not None and self.policy_learner is not None and not getattr(self.args, "sd_fresh_learner", False):
            self.policy_learner.remember(*recent.shape)

    def _serves_another(self, stored: float) -> bool:
        """Tells whether a checkpoint's served budget gives way: to one that is asked for, or to a new training's."""
        asked = getattr(self.args, "sd_served_budget", None) is not None
        fresh = getattr(self.args, "sd_fresh_learner", False) and is_training(sys.argv)
        return asked or fresh or not self.encoder.policy.budgets.holds(stored)

    def _drop_another_policy(self, state_dict: Dict[str, Any], prefix: str, own: Iterable[str]) -> None:
        """Leaves out a policy of another kind than the model's, its learner's state too, and says so."""
        found, wanted = stored_policy(key[len(prefix) :] for key in state_dict), stored_policy(own)
        if found and wanted and found != wanted:
            text = "the checkpoint's policy is of kind %s, --sd-policy is %s: it is left out and a fresh one starts"
            logger.warning(text, found, wanted)
            for key in [key for key in state_dict if key.startswith(tuple(prefix + p for p in POLICY_KEYS))]:
                del state_dict[key]
