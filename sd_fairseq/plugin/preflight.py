"""Looks at a fairseq command line before fairseq acts on it, where fairseq would fail late, obscurely or in silence.

Of a checkpoint only the tables are read, never the tensors, and nothing in it is executed: 1.6 GB take milliseconds.
"""

import argparse
import io
import os
import pickle
import zipfile
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch

from sd_fairseq.plugin.compatibility import loads_weights_only
from sd_fairseq.plugin.errors import InputError, fairseq_command

# fairseq's default, the only name that is looked up in --save-dir and may be absent
DEFAULT_RESTORE_FILE = "checkpoint_last.pt"
OPT_IN_VARIABLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_LAUNCHER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
_SLURM_VARIABLES = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file written by torch.save before torch 1.6
_ELEMENT_BYTES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2}  # any other: 1
_CONFIG_KEYS = ("args", "cfg")


class _Tables(NamedTuple):
    """The object in a checkpoint file, with everything but plain containers made inert, and its pickle."""

    content: Any
    pickle_bytes: bytes


def check_command_line(argv: Sequence[str]) -> None:
    """Refuse a fairseq command whose checkpoint cannot be loaded or that would start no worker.

    Args:
        argv: `sys.argv`; nothing is looked at unless its first item is a fairseq command line.

    Raises:
        InputError: a checkpoint is missing, truncated, foreign or holds types that torch refuses, or a distributed run
            on CPU would end at once with exit code 0 and nothing trained.
    """
    command = fairseq_command(argv[0]) if argv else None
    if command is None:
        return
    options = _read_options(argv[1:])
    if options is None:  # fairseq's own parser says what is wrong
        return
    if command == "generate":
        _check_shards(options)
    else:
        _check_workers(options)
    for option, path in _find_checkpoints(command.replace("_", "-"), options):
        if "://" not in path:
            check_checkpoint(path, option)


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
        tables = _read_tables(path)
    except Exception as error:  # damaged pickles raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError("{}: truncated or not a checkpoint ({})".format(place, reason)) from error
    _check_content(place, tables.content)
    if loads_weights_only() and os.environ.get(OPT_IN_VARIABLE, "").lower() not in ("1", "y", "yes", "true"):
        _check_types(place, tables.pickle_bytes)


def _check_content(place: str, content: Any) -> None:
    """Refuse what is not a fairseq checkpoint."""
    expected = "expected a fairseq checkpoint with 'model' and one of 'args' and 'cfg'"
    if not isinstance(content, dict) or (isinstance(content, _Inert) and not content):
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
    for name in ("path", "lm-path", "finetune-from-model", "continue-once"):
        parser.add_argument("--" + name)
    parser.add_argument("--restore-file", default=DEFAULT_RESTORE_FILE)
    parser.add_argument("--save-dir", default="checkpoints")
    parser.add_argument("--checkpoint-suffix", default="")
    parser.add_argument("--checkpoint-shard-count", type=int, default=1)
    parser.add_argument("--distributed-world-size", type=int, default=1)
    parser.add_argument("--num-shards", type=int, default=1)
    for name in ("use-sharded-state", "distributed-no-spawn", "tpu"):
        parser.add_argument("--" + name, action="store_true")
    try:
        return parser.parse_known_args(list(arguments))[0]
    except InputError:
        return None


def _check_workers(options: argparse.Namespace) -> None:
    """Refuse the run for which fairseq spawns one worker a GPU on a machine without one, and so none."""
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


class _Inert(dict):
    """Stands for every object in a pickle that is not a plain container; whatever is done to it does nothing."""

    def __init__(self, *values, **named):
        super().__init__()

    def __setstate__(self, state):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass

    __hash__ = object.__hash__


class _InertUnpickler(pickle.Unpickler):
    """Reads the structure of a pickle without importing or calling anything that it names."""

    def __init__(self, data: BinaryIO):
        super().__init__(data, encoding="latin1")
        self.storages: Dict[str, Tuple[str, int]] = {}  # key -> name of the storage class, number of elements

    def find_class(self, module: str, name: str) -> type:
        return type(name, (_Inert,), {})

    def persistent_load(self, description: Tuple) -> Any:
        if description[0] != "storage":  # a whole module in a file of before torch 1.6
            return description[1]
        _, kind, key, _, elements = description[:5]
        self.storages[str(key)] = (kind.__name__.replace("Storage", ""), int(elements))
        return _Inert()

    def storage_bytes(self, key: str) -> int:
        """Bytes of a storage."""
        kind, elements = self.storages[key]
        return elements * _ELEMENT_BYTES.get(kind, 1)


def _read_tables(path: str) -> _Tables:
    """Read a file of torch.save in either format and check that every tensor it names is all there."""
    with open(path, "rb") as data:
        start = data.read(2)
        data.seek(0)
        if not start:
            raise ValueError("the file is empty")
        return _read_archive(data) if start == b"PK" else _read_legacy(data)


def _read_archive(data: BinaryIO) -> _Tables:
    """The zip format, since torch 1.6. Its directory stands at the end, so a truncated file has none."""
    with zipfile.ZipFile(data) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        table = next((name for name in sizes if name.split("/", 1)[-1] == "data.pkl"), None)
        if table is None:
            raise ValueError("an archive without data.pkl")
        pickle_bytes = archive.read(table)
    reader = _InertUnpickler(io.BytesIO(pickle_bytes))
    content = reader.load()
    for key in reader.storages:
        found, needed = sizes.get(table[: -len("data.pkl")] + "data/" + key, 0), reader.storage_bytes(key)
        if found < needed:
            raise ValueError("tensor storage {} has {} of {} bytes".format(key, found, needed))
    return _Tables(content, pickle_bytes)


def _read_legacy(data: BinaryIO) -> _Tables:
    """The format before torch 1.6: five pickles, then the bytes of every storage behind its 8-byte length."""
    if _InertUnpickler(data).load() != _LEGACY_MAGIC:
        raise ValueError("not written by torch.save")
    for _ in ("protocol version", "byte order and sizes"):
        _InertUnpickler(data).load()
    begin = data.tell()
    reader = _InertUnpickler(data)
    content = reader.load()
    end = data.tell()
    data.seek(begin)
    pickle_bytes = data.read(end - begin)
    keys = _InertUnpickler(data).load()
    needed = data.tell() + sum(8 + reader.storage_bytes(str(key)) for key in keys)
    found = data.seek(0, os.SEEK_END)
    if found < needed:
        raise ValueError("{} of {} bytes".format(found, needed))
    return _Tables(content, pickle_bytes)
