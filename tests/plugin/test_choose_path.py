"""What ``--sd-path`` stands for, and which models take it."""

import logging
from argparse import Namespace

import pytest

pytest.importorskip("fairseq")
from fairseq.models import ARCH_CONFIG_REGISTRY  # noqa: E402

from sd_fairseq.plugin.generation.choose_path import choose_model, read_path  # noqa: E402
from sd_fairseq.plugin.guards.errors import InputError  # noqa: E402


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", [None, 5])
def test_random_decisions_have_a_probability_and_may_have_a_seed(keep, seed):
    text = f"random:{keep}" if seed is None else f"random:{keep}:{seed}"
    wanted = {"sd_policy": "random", "sd_random_keep": keep, "sd_random_seed": seed or 1}
    assert read_path(text) == read_path(f" {text} ") == wanted


@pytest.mark.parametrize("path", ["encoder_ffn=110,token_strategy=last:20", '{"encoder_ffn": "110"}'])
def test_a_path_is_the_same_with_its_name_and_without(path):
    assert read_path(path) == {"sd_policy": "static", "sd_static_path": path}
    assert read_path("static:" + path) == read_path(path)


def test_dense_keeps_everything():
    assert read_path("dense") == {"sd_policy": "dense"}


@pytest.mark.parametrize(
    "text",
    ["", "dense:1", "random", "random:", "random:2", "random:-0.1", "random:nan", "random:x", "static:", "sparse"],
)
def test_what_is_no_path_is_named(text):
    with pytest.raises(InputError) as caught:
        read_path(text)
    assert f"--sd-path {text!r}: expected one of" in str(caught.value)


def options(arch, **more):
    args = Namespace(arch=arch, _name=arch, **more)
    ARCH_CONFIG_REGISTRY[arch](args)
    return args


@pytest.mark.parametrize("path,fast", [(None, True), ("random:0.5", True), ("random:0.5", False)])
def test_a_plain_bart_becomes_a_switchable_one_of_its_size(path, fast):
    import sd_fairseq.plugin.models.switchable_bart  # noqa: F401  # registers the architectures

    args = options("bart_large")
    choose_model(args, path, fast)
    assert args.arch == args._name == "switchable_bart_large"
    assert args.sd_policy == ("random" if path else "dense")


def test_a_plain_bart_that_nobody_asks_to_switch_stays_fairseqs(caplog):
    args = options("bart_base")
    with caplog.at_level(logging.WARNING):
        choose_model(args, None, False)
    assert args.arch == "bart_base" and not hasattr(args, "sd_policy") and not caplog.records


def test_a_bart_that_cannot_be_switched_is_told_once_and_takes_no_path(caplog):
    args = options("bart_base", encoder_layerdrop=0.1)
    with caplog.at_level(logging.WARNING):
        choose_model(args, None, True)
    assert args.arch == "bart_base" and len(caplog.records) == 1 and "--encoder-layerdrop" in caplog.text
    with pytest.raises(InputError, match="--sd-path 'dense' needs a BART that can be switched, found .*layerdrop"):
        choose_model(args, "dense", True)


def test_another_model_takes_no_path_and_a_switchable_one_does():
    import sd_fairseq.plugin.models.switchable_bart  # noqa: F401

    with pytest.raises(InputError, match="found transformer"):
        choose_model(options("transformer"), "dense", True)
    args = Namespace(arch="switchable_bart_base", _name="switchable_bart_base")
    choose_model(args, "random:0.5", True)
    assert args.arch == "switchable_bart_base" and args.sd_policy == "random"
