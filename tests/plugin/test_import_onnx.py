"""Weights of 8-bit ONNX graphs: found by the names of the nodes that use them, one scale and one zero a tensor."""

import re
import shutil
from pathlib import Path

import numpy
import pytest
import torch

from sd_fairseq.plugin.convert.import_model import import_model, read_source
from sd_fairseq.plugin.convert.weights.safetensors import read_safetensors
from sd_fairseq.plugin.guards.errors import InputError

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "t5" / "v1_1"


def quantise(value):
    """8 bits with one scale and a zero that is not in the middle; returns them and what they stand for."""
    low, high = float(value.min()), float(value.max())
    scale = numpy.float32((high - low) / 255)
    zero = numpy.uint8(round(-low / scale))
    whole = numpy.clip(numpy.round(value.numpy() / scale) + zero, 0, 255).astype(numpy.uint8)
    return whole, scale, zero, torch.from_numpy((whole.astype(numpy.float32) - zero) * scale)


def write_graph(path, weights, prefix):
    """Writes a graph that holds weights as exporters leave them; it computes nothing. Returns what they stand for."""
    nodes, initialisers, expected = [], [], {}
    for number, (name, value) in enumerate(sorted(weights.items())):
        inner = re.sub(r"^(encoder|decoder)\.", "", name)
        if name.endswith("layer_norm.weight"):
            initialisers.append(onnx.numpy_helper.from_array(value.numpy(), f"{prefix}.{inner}"))
            expected[name] = value
            continue
        gathers = "shared" in name or "relative" in name
        whole, scale, zero, stands_for = quantise(value if gathers else value.t().contiguous())
        expected[name] = stands_for if gathers else stands_for.t()
        own = f"{prefix}.{inner}" if gathers else f"onnx::MatMul_{number}"
        for end, part in (("_quantized", whole), ("_scale", scale), ("_zero_point", zero)):
            initialisers.append(onnx.numpy_helper.from_array(numpy.asarray(part), own + end))
        module = "/" + f"{prefix}.{inner}"[: -len(".weight")].replace("block.", "block_").replace("layer.", "layer_")
        module = module.replace(".", "/").replace("block_", "block.").replace("layer_", "layer.")
        inputs = [own + "_quantized", "i"] if gathers else ["x", own + "_quantized", "xz", own + "_zero_point"]
        operator, last = ("Gather", "Gather") if gathers else ("MatMulInteger", "MatMul_quant")
        nodes.append(onnx.helper.make_node(operator, inputs, [f"o{number}"], name=f"{module}/{last}"))
    graph = onnx.helper.make_graph(nodes, "g", [], [], initializer=initialisers)
    onnx.save(onnx.helper.make_model(graph), str(path))
    return expected


@pytest.fixture
def package(tmp_path):
    """A folder of two graphs, and the weights that they stand for."""
    weights = read_safetensors(str(REFERENCE / "model.safetensors"))
    folder = tmp_path / "package"
    folder.mkdir()
    encoder = {name: value for name, value in weights.items() if name.startswith("encoder.") or name == "shared.weight"}
    decoder = {name: value for name, value in weights.items() if not name.startswith("encoder.")}
    expected = write_graph(folder / "encoder.onnx", encoder, "enc")
    expected.update(write_graph(folder / "decoder.onnx", decoder, "m.decoder"))
    shutil.copy(str(REFERENCE / "tokenizer.json"), str(folder))
    return folder, expected


def test_every_weight_is_found_and_stands_for_its_floats(package):
    from sd_fairseq.plugin.convert.weights.onnx import read_package

    folder, expected = package
    found = read_package(str(folder))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value.float()), name


def test_sizes_are_read_off_the_weights(package, tmp_path):
    folder, _ = package
    options = read_source(str(folder)).options
    from_config = read_source(str(REFERENCE)).options
    assert {**options, "relative_distance": 20} == from_config  # the only one that no weight shows
    assert "48" in import_model(str(folder), str(tmp_path / "out"))[0]


def test_damaged_graphs_are_one_line(package, tmp_path):
    folder, _ = package
    whole = (folder / "decoder.onnx").read_bytes()
    (folder / "decoder.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="decoder.onnx: truncated or not an ONNX file"):
        import_model(str(folder), str(tmp_path / "out"))


def test_without_the_package_it_is_named(package, tmp_path, capsys, monkeypatch):
    from sd_fairseq.commands.import_weights import main

    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert main([str(package[0]), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install onnx" in error
