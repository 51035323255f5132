"""fairseq's hub interface for switchable models: ``predict`` for any batch, and the decisions behind a prediction."""

from __future__ import annotations

from typing import List, Optional

import torch
import torch.nn.functional as F
from fairseq.models.bart.hub_interface import BARTHubInterface
from torch import Tensor

from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.plugin.models.classification import classification_head_shape, state_of_last_end


class SwitchableHubInterface(BARTHubInterface):
    """What ``SwitchableBARTModel.from_pretrained`` returns; used as BART's.

    Args:
        cfg, task, model: as BART's.
    """

    def encode(self, sentence: str, *addl_sentences: str, no_separator: bool = True) -> Tensor:
        """As BART's, but what the dictionary does not know is ``<unk>``; fairseq's adds it, and the model has no row.

        Args:
            sentence, addl_sentences: texts.
            no_separator: False = a second ``</s>`` between texts.

        Returns:
            LongTensor [S].
        """
        first = self.bpe.encode(sentence).split(" ")[: min(self.max_positions) - 2]
        pieces = ["<s>", *first, "</s>"]
        for text in addl_sentences:
            pieces += [*([] if no_separator else ["</s>"]), self.bpe.encode(text), "</s>"]
        dictionary = self.task.source_dictionary
        return dictionary.encode_line(" ".join(pieces), append_eos=False, add_if_not_exist=False).long()

    def predict(
        self, head: str, tokens: Tensor, return_logits: bool = False, decision_log: Optional[List[Decisions]] = None
    ) -> Tensor:
        """Classifies along the deployed paths.

        Args:
            head: name of a classification head.
            tokens: LongTensor [S] or [B, S], right-padded; rows may hold different numbers of sentences.
            return_logits: True = logits, False = log-probabilities.
            decision_log: the batch's decisions are appended to it.

        Returns:
            [B, K].

        Raises:
            InputError: no such head, or a row without an end-of-sentence symbol.
        """
        classification_head_shape(self.model, head)
        tokens = (tokens.unsqueeze(0) if tokens.dim() == 1 else tokens).to(self.device)
        dictionary = self.task.source_dictionary
        features, extra = self.model(
            src_tokens=tokens,
            src_lengths=None,
            prev_output_tokens=roll_to_the_right(tokens, dictionary.pad()),
            features_only=True,
            return_all_hiddens=False,
        )
        if decision_log is not None:
            decision_log.append(extra["decisions"])
        logits = self.model.classification_heads[head](state_of_last_end(features, tokens, dictionary.eos()))
        return logits if return_logits else F.log_softmax(logits, dim=-1)


def roll_to_the_right(tokens: Tensor, padding: int) -> Tensor:
    """Returns the decoder's input of right-padded [B, S] tokens: each row's last symbol moved to its front.

    Unlike fairseq's hub, which leaves one symbol too many behind the end of a padded row, it is what the model was
    trained on.
    """
    lengths = tokens.ne(padding).sum(dim=1, keepdim=True)  # [B, 1]
    rolled = torch.cat([tokens.gather(1, lengths - 1), tokens[:, :-1]], dim=1)  # [B, S]
    position = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
    return rolled.masked_fill(position >= lengths, padding)
