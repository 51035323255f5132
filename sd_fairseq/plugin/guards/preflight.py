"""Looks at a fairseq command line before fairseq acts on it, where fairseq would fail late, obscurely or in silence."""

import argparse
import io
import logging
import os
import sys
import zipfile
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from sd_fairseq.plugin.guards.checkpoint_structure import stored_symbols, take_structure
from sd_fairseq.plugin.guards.checkpoint_tables import Inert, read_tables
from sd_fairseq.plugin.guards.compatibility import loads_weights_only
from sd_fairseq.plugin.guards.errors import InputError, fairseq_command
from sd_fairseq.plugin.guards.option_checks import add_options, check_options, check_workers_agree
from sd_fairseq.plugin.guards.precision_checks import add_options as add_precision_options
from sd_fairseq.plugin.guards.precision_checks import check_precision
from sd_fairseq.plugin.guards.presets import MODEL_VALUES, check_effects, flag, options_with_conditions
from sd_fairseq.plugin.guards.restart import mend_last_checkpoint
from sd_fairseq.plugin.guards.trace_place import check_trace

logger = logging.getLogger(__name__)

# fairseq's default, the only name that is looked up in --save-dir and may be absent
DEFAULT_RESTORE_FILE = "checkpoint_last.pt"
OPT_IN_VARIABLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_LAUNCHER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
_SLURM_VARIABLES = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
_CONFIG_KEYS = ("args", "cfg")


def check_command_line(argv: Sequence[str]) -> None:
    """Refuse a fairseq command whose checkpoint cannot be loaded or that would start no worker.

    Args:
        argv: `sys.argv`; nothing is looked at unless its first item is a fairseq command line.

    Raises:
        InputError: a checkpoint is missing, truncated, foreign or holds types that torch refuses, a distributed run
            on CPU would end at once with exit code 0 and nothing trained, or an option that cannot work.
    """
    command = fairseq_command(argv[0]) if argv else None
    if command is None:
        return
    options = _read_options(argv[1:])
    if options is None:  # fairseq's own parser says what is wrong
        return
    check_options(command, options)
    check_precision(command, options)
    if command in ("generate", "interactive", "validate") and "sd_token_strategies" in typed_names(argv):
        raise InputError("--sd-token-strategies belongs to training: a checkpoint brings its own; leave it out")
    if command == "validate" and "sd_flops_budget" in typed_names(argv):
        raise InputError(
            "fairseq-validate takes the checkpoint's task and would ignore --sd-flops-budget; "
            "use --model-overrides \"{'sd_served_budget': 0.6}\""
        )
    if command == "generate":
        _check_shards(options)
    else:
        _check_workers(options)
    if command == "train":
        if "sd_policy_criterion" in argv or "--criterion=sd_policy_criterion" in argv:
            check_effects(typed_options(argv[1:]))
        _mend_last_checkpoint(options)
    found = _find_checkpoints(command.replace("_", "-"), options)
    for option, path in found:
        if "://" not in path:
            check_checkpoint(path, option)
    if command in ("generate", "interactive") and options.sd_trace:
        check_trace(options.sd_trace, [*(path for _, path in found), options.input])


def prepare_training(args: Any) -> List[str]:
    """Gives the model of a fairseq-train that is about to start from a checkpoint the checkpoint's sizes.

    Args:
        args: the model's options; changed in place. Those of fairseq-hydra-train are left as they are.

    Returns:
        The model's options that the preset is going to fill in, as ``name value``.

    Raises:
        InputError: a size on the command line that is not the checkpoint's.
    """
    arch = str(getattr(args, "arch", ""))
    if not isinstance(args, argparse.Namespace) or not arch.startswith("switchable") or not is_training(sys.argv):
        return []
    options = _read_options(sys.argv[1:])
    if options is not None:
        option, path = _find_training_checkpoint(options)
        if path is not None and os.path.isfile(path):
            # fairseq forgets the backbone's optimizer then, too
            args.sd_fresh_learner = option == "--finetune-from-model" or options.reset_optimizer
            changed = take_structure(args, path, option, typed_names(sys.argv))
            if changed:
                sizes = ", ".join(f"{name} {getattr(args, name)}" for name in changed)
                logger.info("as in %s: %s", path, sizes)
    typed = typed_names(sys.argv)
    values = MODEL_VALUES.get(getattr(args, "sd_preset", None), {})
    taken = [(name, value) for name, value in values.items() if name not in typed and getattr(args, name) == value]
    return [f"{name[3:].replace('_', '-')} {value}" for name, value in taken]


def is_training(argv: Sequence[str]) -> bool:
    """Tells whether this process is fairseq-train."""
    return bool(argv) and fairseq_command(argv[0]) == "train"


def typed_names(argv: Sequence[str]) -> List[str]:
    """Lists the options of a command line, as names."""
    return [word.split("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")]


def typed_options(argv: Sequence[str]) -> Dict[str, Any]:
    """Reads the options of a command line that have conditions (see :func:`~.presets.check_effects`).

    Returns:
        Name -> text; options that are not typed are not in it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in ("sd_preset", "sd_mode", "sd_policy", "sd_estimator", "sd_path", *options_with_conditions()):
        parser.add_argument(flag(name), nargs="?")
    return vars(parser.parse_known_args(list(argv))[0])


def check_checkpoint(path: str, option: str) -> None:
    """Refuse a file that fairseq cannot load as a checkpoint.

    Args:
        path: file on this machine.
        option: the option that named it, for the message.

    Raises:
        InputError: missing, truncated, foreign, or with types that `torch.load` refuses.
    """
    place = "{} {}".format(option, path)
    if not os.path.isfile(path):
        kind = "a folder, expected a checkpoint file" if os.path.isdir(path) else "no such file"
        silent = option in ("--restore-file", "--continue-once")
        hint = "; fairseq-train would silently start from scratch" if silent else ""
        raise InputError("{}: {}{}".format(place, kind, hint))
    try:
        tables = read_tables(path)
    except Exception as error:  # damaged pickles raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError("{}: truncated or not a checkpoint ({})".format(place, reason)) from error
    _check_content(place, tables.content)
    if loads_weights_only() and os.environ.get(OPT_IN_VARIABLE, "").lower() not in ("1", "y", "yes", "true"):
        _check_types(place, tables.pickle_bytes)


def check_teacher(path: str, dictionary: Any) -> None:
    """Refuses a ``--sd-teacher`` of another dictionary.

    Args:
        path: its checkpoint.
        dictionary: of the data.

    Raises:
        InputError: unreadable, or of another number of symbols.
    """
    check_checkpoint(path, "--sd-teacher")
    found, expected = stored_symbols(path), len(dictionary)
    has_mask_row = found == expected + 1 and "<mask>" not in dictionary
    if found not in (None, expected) and not has_mask_row:
        raise InputError(
            f"--sd-teacher {path}: was made with a dictionary of {found} symbols, the data's has {expected}"
        )


def _check_content(place: str, content: Any) -> None:
    """Refuse what is not a fairseq checkpoint."""
    expected = "expected a fairseq checkpoint with 'model' and one of 'args' and 'cfg'"
    if not isinstance(content, dict) or (isinstance(content, Inert) and not content):
        kind = type(content).__name__.strip("_")
        raise InputError("{}: holds one object of kind {}, {}".format(place, kind, expected))
    if "model" not in content or all(content.get(key) is None for key in _CONFIG_KEYS):
        keys = [str(key) for key in content]
        shown = (", ".join(keys[:6]) or "(none)") + (", ..." if len(keys) > 6 else "")
        raise InputError("{}: not a fairseq checkpoint, found the keys {}; {}".format(place, shown, expected))


def _check_types(place: str, pickle_bytes: bytes) -> None:
    """Refuse what `torch.load` will refuse, by torch's own list and ours."""
    wrapped = io.BytesIO()
    with zipfile.ZipFile(wrapped, "w") as archive:  # torch looks into archives only; old files have none
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", "3\n")
    wrapped.seek(0)
    refused = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(wrapped))
    if refused:
        advice = "if you trust its origin, allow everything with {}=1".format(OPT_IN_VARIABLE)
        raise InputError("{}: holds {}, which may run code when loaded; {}".format(place, ", ".join(refused), advice))


def _read_options(arguments: Sequence[str]) -> Optional[argparse.Namespace]:
    """Read the few options of interest; None if one of them is malformed."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise InputError(message)

    parser = Parser(add_help=False, allow_abbrev=False)
    for name in ("path", "lm-path", "finetune-from-model", "continue-once", "arch", "ddp-backend", "sd-trace", "input"):
        parser.add_argument("--" + name)
    parser.add_argument("--restore-file", default=DEFAULT_RESTORE_FILE)
    parser.add_argument("--save-dir", default="checkpoints")
    parser.add_argument("--checkpoint-suffix", default="")
    parser.add_argument("--checkpoint-shard-count", type=int, default=1)
    parser.add_argument("--distributed-world-size", type=int, default=1)
    parser.add_argument("--num-shards", type=int, default=1)
    for name in ("use-sharded-state", "distributed-no-spawn", "tpu", "reset-optimizer"):
        parser.add_argument("--" + name, action="store_true")
    add_options(parser)
    add_precision_options(parser)
    try:
        return parser.parse_known_args(list(arguments))[0]
    except InputError:
        return None


def _check_workers(options: argparse.Namespace) -> None:
    """Refuse an engine that the model cannot run under, and the run for which fairseq spawns no worker at all.

    The latter is one worker a GPU on a machine without one.
    """
    if (options.arch or "").startswith("switchable"):
        check_workers_agree(options)
    if options.distributed_world_size <= 1 or options.distributed_no_spawn or options.tpu:
        return
    launched = all(name in os.environ for name in _LAUNCHER_VARIABLES)
    scheduled = any(name in os.environ for name in _SLURM_VARIABLES)
    if not launched and not scheduled and torch.cuda.device_count() == 0:
        raise InputError(
            "--distributed-world-size {} without a GPU starts no worker and trains nothing; start one process per rank "
            "with --cpu --distributed-no-spawn --distributed-rank RANK --distributed-init-method tcp://localhost:PORT "
            "--distributed-backend gloo --ddp-backend legacy_ddp".format(options.distributed_world_size)
        )


def _check_shards(options: argparse.Namespace) -> None:
    """Refuse the option that fairseq-generate accepts and ignores: every shard would decode everything."""
    if options.num_shards > 1:
        raise InputError(
            "fairseq-generate ignores --num-shards {}; use --distributed-world-size {} --distributed-rank SHARD".format(
                options.num_shards, options.num_shards
            )
        )


def _find_checkpoints(command: str, options: argparse.Namespace) -> List[Tuple[str, str]]:
    """List (option, file) for the checkpoints that the command is going to open, by fairseq's own rules."""
    if options.use_sharded_state or options.checkpoint_shard_count != 1:
        return []  # the names depend on the rank
    named = []
    if command == "train":
        named = [_find_training_checkpoint(options)]
    elif command in ("generate", "interactive") and options.path is not None:
        separator = "|" if "://" in options.path else os.pathsep
        named = [("--path", path) for path in options.path.split(separator)]
    elif command in ("validate", "eval-lm"):
        named = [("--path", options.path)]
    found = [(option, path) for option, path in named if path is not None]
    if options.checkpoint_suffix:
        found = [(option, path.replace(".pt", options.checkpoint_suffix + ".pt")) for option, path in found]
    if command == "generate" and options.lm_path is not None:
        found.append(("--lm-path", options.lm_path))
    return found


def _find_training_checkpoint(options: argparse.Namespace) -> Tuple[str, Optional[str]]:
    """Follow fairseq.checkpoint_utils.load_checkpoint: which file it opens, before the suffix."""
    if options.restore_file != DEFAULT_RESTORE_FILE:
        return "--restore-file", options.restore_file
    last = os.path.join(options.save_dir, DEFAULT_RESTORE_FILE)
    if os.path.exists(last.replace(".pt", options.checkpoint_suffix + ".pt")):
        return "--save-dir", last
    if options.continue_once is not None:
        return "--continue-once", options.continue_once
    return "--finetune-from-model", options.finetune_from_model


def _mend_last_checkpoint(options: argparse.Namespace) -> None:
    """Let the same command go on after a kill that cut checkpoint_last.pt short."""
    sharded = options.use_sharded_state or options.checkpoint_shard_count != 1
    if options.restore_file == DEFAULT_RESTORE_FILE and not sharded and "://" not in options.save_dir:
        name = DEFAULT_RESTORE_FILE.replace(".pt", options.checkpoint_suffix + ".pt")
        mend_last_checkpoint(os.path.join(options.save_dir, name), _is_whole, options.checkpoint_suffix)


def _is_whole(path: str) -> bool:
    """Tell whether a file is a checkpoint with all its tensors; what types it holds is another matter."""
    try:
        return "model" in read_tables(path).content
    except Exception:  # damaged pickles raise nearly anything
        return False
