"""Reads what stands in a checkpoint beside its tensors, without executing anything in it: 1.6 GB take milliseconds."""

import io
import os
import pickle
import zipfile
from typing import Any, BinaryIO, Dict, NamedTuple, Tuple

from sd_fairseq.user_files import open_input

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file written by torch.save before torch 1.6
_ELEMENT_BYTES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2}  # any other: 1


class Tables(NamedTuple):
    """The object in a checkpoint file, with everything but plain containers made inert, and its pickle."""

    content: Any
    pickle_bytes: bytes


class Inert(dict):
    """Stands for every object in a pickle that is not a plain container; whatever is done to it does nothing.

    Attributes:
        attributes: what the object would have held, such as the dictionary of a Namespace; None = nothing.
        arguments: what it would have been made of, such as the storage, offset and size of a tensor.
    """

    attributes: Any = None

    def __init__(self, *values, **named):
        super().__init__()
        self.arguments = values

    def __setstate__(self, state):
        self.attributes = state

    def append(self, value):
        pass

    def extend(self, values):
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]


class _InertUnpickler(pickle.Unpickler):
    """Reads the structure of a pickle without importing or calling anything that it names."""

    def __init__(self, data: BinaryIO):
        super().__init__(data, encoding="latin1")
        self.storages: Dict[str, Tuple[str, int]] = {}  # key -> name of the storage class, number of elements

    def find_class(self, module: str, name: str) -> type:
        return type(name, (Inert,), {})

    def persistent_load(self, description: Tuple) -> Any:
        if description[0] != "storage":  # a whole module in a file of before torch 1.6
            return description[1]
        _, kind, key, _, elements = description[:5]
        self.storages[str(key)] = (kind.__name__.replace("Storage", ""), int(elements))
        return Inert()

    def storage_bytes(self, key: str) -> int:
        """Bytes of a storage."""
        kind, elements = self.storages[key]
        return elements * _ELEMENT_BYTES.get(kind, 1)


def read_tables(path: str) -> Tables:
    """Read a file of torch.save in either format and check that every tensor it names is all there."""
    with open_input(path) as data:
        start = data.read(2)
        data.seek(0)
        if not start:
            raise ValueError("the file is empty")
        return _read_archive(data) if start == b"PK" else _read_legacy(data)


def _read_archive(data: BinaryIO) -> Tables:
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
    return Tables(content, pickle_bytes)


def _read_legacy(data: BinaryIO) -> Tables:
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
    return Tables(content, pickle_bytes)
