"""Laws that more than one test file asserts."""

import dataclasses

import torch
from factories import along, generate, random_batch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sd_fairseq.cost.path_flops import Lengths, dense_flops, path_flops


def check_traced_flops(model, decisions, length, beam):
    """Asserts that one document's generation runs the FLOPs of the closed form; a dense path costs the dense FLOPs."""
    batch, shape = random_batch([length]), dataclasses.replace(model.shape, policy_networks=0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hypotheses = generate([model], along(batch, decisions), beam, max_len_b=6)[0]
    lengths = Lengths(batch.src_lengths, torch.tensor([max(len(one["tokens"]) for one in hypotheses)]), beam)
    closed = int(path_flops("generation", shape, model.space, decisions, lengths))
    assert counter.get_total_flops() == closed, (length, model.space.describe(decisions, 0))
    keep, dense = model.space.keep_all(1, torch.device("cpu")), dense_flops("generation", shape, model.space, lengths)
    assert torch.equal(path_flops("generation", shape, model.space, keep, lengths), dense)
    paper = path_flops("paper", shape, model.space, decisions, lengths)
    assert float(paper) <= float(dense_flops("paper", shape, model.space, lengths))
