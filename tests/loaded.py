"""Loads what every fairseq command loads first, for processes that are forked to run commands.

Others' modules only: the plugin is imported by the command itself. None of fairseq_cli, which set up logging. torch
imports torch._dynamo at the first optimizer, which takes a second, and symbolic_shapes at the first forward pass. hydra
learns its grammar from the first options that it reads, another half second.
"""

import gc
import importlib
import logging
import warnings

NAMES = """numpy torch torch._dynamo torch.fx.experimental.symbolic_shapes torch.distributed hydra omegaconf sacrebleu
fairseq fairseq.checkpoint_utils fairseq.options fairseq.trainer fairseq.sequence_scorer fairseq.binarizer
fairseq.logging.progress_bar fairseq.logging.meters fairseq.hub_utils fairseq.quantization_utils
fairseq.model_parallel.megatron_trainer fairseq.tasks.sentence_prediction""".split()


def read_options():
    """Has fairseq read the options of a training and of a generation, which changes nothing but caches."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    training = ["data", "--arch", "bart_base", "--task", "translation", "--save-dir", "a/b-c.d_e", "--lr", "1e-3"]
    generation = ["data", "--path", "a/b-c.pt", "--model-overrides", "{'a': 1}", "--cpu"]
    for parser, words in (
        (options.get_training_parser(), training),
        (options.get_generation_parser(), generation),
    ):
        convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=words))


logging.disable()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in NAMES:
        try:
            importlib.import_module(name)
        except ImportError:  # another version has no such module
            pass
    try:
        read_options()
    except ImportError:
        pass
logging.disable(logging.NOTSET)
logging.root.handlers.clear()  # fairseq_cli sets them up before it imports anything of fairseq
logging.root.setLevel(logging.WARNING)
gc.collect()
gc.freeze()
