"""Puts CPU stand-ins where fairseq names a GPU, so that the code paths around them run without one.

Each function is meant for :func:`dropin.workers.start`'s ``prepare``: it changes the forked process only.
"""

import functools

import torch


def data_parallel_on_cpu() -> None:
    """torch's DistributedDataParallel without the GPU that fairseq assigns to a rank."""
    from fairseq.models import distributed_fairseq_model as module

    def wrap(*args, device_ids=None, output_device=None, **kwargs):
        return inner(*args, **kwargs)

    inner = module.DistributedDataParallel
    module.DistributedDataParallel = wrap


def flat_gradients_on_cpu() -> None:
    """``--fp16``'s flattened parameters on the CPU: fairseq files them under the current GPU's index."""
    torch.cuda.current_device = lambda: None  # the index of a CPU tensor's device
    options_as_by_hydra(fp16=True)  # on the command line it is refused where there is no GPU


def overflow_on_cpu() -> None:
    """An overflow's zero gradient norm stays on the CPU."""
    torch.Tensor.cuda = lambda tensor: tensor


def loss_scaler_on_cpu() -> None:
    """``--amp``'s loss scaler, which switches itself off without a GPU, and autocast in bfloat16."""
    torch.cuda.amp.GradScaler = lambda init_scale: torch.amp.GradScaler("cpu", init_scale=float(init_scale))
    torch.cuda.amp.autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def options_as_by_hydra(**values) -> None:
    """Sets options behind fairseq-train's parser, as fairseq-hydra-train does: the parser takes bf16 for a TPU."""
    from fairseq import options

    def parse(*args, **kwargs):
        found = inner(*args, **kwargs)
        for name, value in values.items():
            setattr(found, name, value)
        return found

    inner = options.parse_args_and_arch
    options.parse_args_and_arch = parse


def parser_only() -> None:
    """A command ends when its options are read and prints them as one line of JSON."""
    import json

    import fairseq_cli.generate
    from fairseq.distributed import utils
    from omegaconf import OmegaConf

    def tell(cfg, *_):
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf

        cfg = cfg if OmegaConf.is_config(cfg) else convert_namespace_to_omegaconf(cfg)
        groups = ("common", "distributed_training", "dataset", "optimization", "checkpoint", "task", "criterion")
        groups += ("generation", "common_eval")
        print("options " + json.dumps({group: plain(cfg[group]) for group in groups}, default=str))

    def plain(group):
        return (
            OmegaConf.to_container(group, resolve=True, enum_to_str=True) if OmegaConf.is_config(group) else vars(group)
        )

    utils.call_main = tell
    fairseq_cli.generate.main = tell
