"""Checkpoints of fairseq load under torch's protection, and the protection stays."""

import argparse
import io
import os

import numpy
import pytest
import torch

pytest.importorskip("fairseq")
from fairseq.logging.meters import AverageMeter  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from sd_fairseq.plugin.guards.compatibility import list_safe_types, loads_weights_only, prepare_environment  # noqa: E402

protected = pytest.mark.skipif(not loads_weights_only(), reason="this torch loads every type by default")


def save_and_load(content, **options):
    """Write with torch.save, read with torch.load as fairseq calls it."""
    stored = io.BytesIO()
    torch.save(content, stored, **options)
    stored.seek(0)
    return torch.load(stored, map_location=torch.device("cpu"))


@pytest.fixture(autouse=True)
def environment():
    prepare_environment()


@pytest.mark.parametrize("zipped", [True, False])
def test_arguments_and_numpy_values_load(zipped):
    content = {
        "args": argparse.Namespace(arch="bart_base", lr=[0.1]),
        "counts": numpy.arange(4),
        "names": numpy.array(["a", "bc"]),
        "score": numpy.float64(1.5),
        "flag": numpy.bool_(True),
        "half": numpy.float16(0.5),
    }
    loaded = save_and_load(content, _use_new_zipfile_serialization=zipped)
    assert loaded["args"] == content["args"]
    assert loaded["counts"].tolist() == [0, 1, 2, 3] and loaded["names"].tolist() == ["a", "bc"]
    assert (loaded["score"], bool(loaded["flag"]), float(loaded["half"])) == (1.5, True, 0.5)


@pytest.mark.parametrize("module", ["fairseq.logging.meters", "fairseq.meters"])
def test_meters_of_old_checkpoints_load(module, monkeypatch):
    monkeypatch.setattr(AverageMeter, "__module__", module)
    meter = AverageMeter()
    meter.update(3.0)
    assert save_and_load({"train_loss": meter})["train_loss"].avg == 3.0


def test_omegaconf_configuration_loads():
    config = OmegaConf.create({"model": {"layers": 6, "dropout": 0.1, "names": ["a", 2], "fp16": False, "none": None}})
    assert save_and_load({"cfg": config})["cfg"] == config


class Harmful:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.getcwd, ()


@protected
@pytest.mark.parametrize("content", [Harmful(), numpy.array([Harmful()], dtype=object)], ids=["object", "array"])
def test_what_is_not_listed_is_still_refused(content):
    with pytest.raises(Exception, match="Weights only load failed"):
        save_and_load({"model": content})


@protected
def test_second_call_changes_nothing():
    before = torch.serialization.get_safe_globals()
    prepare_environment()
    assert len(torch.serialization.get_safe_globals()) == len(before)


def test_list_names_no_type_twice():
    names = [name for _, name in list_safe_types()]
    assert len(names) == len(set(names))


def test_numpy_has_what_fairseq_looks_up():
    assert numpy.compat.long is int
