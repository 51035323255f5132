"""The architectures have the sizes that were published: as many parameters as the originals, the policy left out."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from factories import build_dictionary

pytest.importorskip("fairseq")

# architecture -> words of the dictionary, parameters: of the papers or of the published checkpoints
PUBLISHED = {
    "switchable_t5": (32128, 76_961_152),  # T5 v1.1 small
    "switchable_t5_1_0_base": (32128, 222_903_552),
    "switchable_gpt2": (50257, 124_439_808),
    "switchable_gpt2_medium": (50257, 354_823_168),
    "switchable_gpt2_large": (50257, 774_030_080),
    "switchable_gpt2_xl": (50257, 1_557_611_200),
    "switchable_llama": (32000, 6_738_415_616),  # 7B
    "switchable_llama_135m": (49152, 134_515_008),  # SmolLM2
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_an_architecture_has_the_originals_parameters(arch):
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    import sd_fairseq.plugin.models.switchable_gpt2
    import sd_fairseq.plugin.models.switchable_llama
    import sd_fairseq.plugin.models.switchable_t5  # noqa: F401

    words, expected = PUBLISHED[arch]
    dictionary = build_dictionary(words - 4)
    args = argparse.Namespace(arch=arch, task="translation", sd_policy="dense")
    ARCH_CONFIG_REGISTRY[arch](args)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=SimpleNamespace())
    with torch.device("meta"):
        model = ARCH_MODEL_REGISTRY[arch].build_model(args, task)
    assert sum(one.numel() for one in model.parameters()) == expected
