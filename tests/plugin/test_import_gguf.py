"""LLaMA's weights and tokenizer out of a GGUF file."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sd_fairseq.plugin.convert.import_model import build, import_model, read_source
from sd_fairseq.plugin.convert.weights.gguf import KINDS
from sd_fairseq.plugin.convert.weights.llama_gguf import INNER, NAMES
from sd_fairseq.plugin.convert.weights.safetensors import read_safetensors
from sd_fairseq.plugin.guards.errors import InputError

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "llama" / "grouped"
TOKENS = ["<|unk|>", "<|start|>", "<|end|>", "<pad>", *map(chr, range(ord("a"), ord("z") + 1)), "Ġ", "Ċ", *"0123456789"]
TOKENS += ["ab", "abc", "Ġa", "cd", "de", "xy"]
ABOUT = {
    "general.architecture": "llama",
    "llama.embedding_length": 16,
    "llama.feed_forward_length": 24,
    "llama.block_count": 3,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 6,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5000.0,
    "llama.context_length": 128,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * 4 + [1] * (len(TOKENS) - 4),
    "tokenizer.ggml.merges": ["a b", "ab c", "Ġ a", "c d", "d e", "x y"],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 3,
}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(value):
    """A value behind the number of its kind."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    items = [entry(one) for one in value]
    return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(one[4:] for one in items)


def pair_neighbours(weight, heads):
    """The rows of queries and keys as GGUF has them: one of the first half, one of the second, ..."""
    return weight.view(heads, 2, -1, weight.size(1)).transpose(1, 2).reshape(weight.size())


def weights_in_gguf(weights):
    """Hugging Face's weights under GGUF's names."""
    outer, inner = {value: name for name, value in NAMES.items()}, {value: name for name, value in INNER.items()}
    found = {}
    for name, value in weights.items():
        if name in outer:
            found[outer[name]] = value
            continue
        layer, kind = name[len("model.layers.") : -len(".weight")].split(".", 1)
        if kind.endswith(("q_proj", "k_proj")):
            value = pair_neighbours(value, 4 if kind.endswith("q_proj") else 2)
        found[f"blk.{layer}.{inner[kind]}.weight"] = value
    return found


def write_gguf(path, about, weights):
    head = b"GGUF" + struct.pack("<IQQ", 3, len(weights), len(about))
    head += b"".join(text(name) + entry(value) for name, value in about.items())
    data = b""
    for name, value in weights.items():
        shape = tuple(value.shape)[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        raw = value.numpy().astype("<f4").tobytes()
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


@pytest.fixture
def file(tmp_path):
    weights = weights_in_gguf(read_safetensors(str(REFERENCE / "model.safetensors")))
    return write_gguf(tmp_path / "model.gguf", ABOUT, weights)


def test_weights_and_sizes_are_those_of_the_folder(file):
    from_file, from_folder = read_source(str(file)), read_source(str(REFERENCE))
    assert from_file.options.pop("layer_norm_epsilon") == pytest.approx(from_folder.options.pop("layer_norm_epsilon"))
    assert from_file.options == from_folder.options and from_file.parts == from_folder.parts
    first, second = build(from_folder._replace(options=from_file.options)), build(from_file)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_tokenizer_is_rebuilt(file, tmp_path):
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    from sd_fairseq.plugin.text.tokenizer import SDTokenizer, SDTokenizerConfig

    lines = import_model(str(file), str(tmp_path / "out"))
    assert "3 layers" in lines[0] and "tokenizer.json" in lines[1]
    config = SDTokenizerConfig(sd_tokenizer=str(tmp_path / "out" / "tokenizer.json"), sd_line_ends=True)
    tokenizer = SDTokenizer(config)
    words = [TOKENS.index(one) for one in ("<|start|>", "abc", "Ġa", "1", "2", "Ċ", "xy", "<|end|>")]
    encoded = tokenizer.encode("<|start|>abc a12\\nxy<|end|>")
    assert encoded.split() == [str(one) for one in words]
    assert read_source(str(file)).dictionary.encode_line(encoded, add_if_not_exist=False).tolist() == [*words, 2]
    assert tokenizer.decode(encoded) == "abc a12\\nxy"


def test_blocks_are_read_as_their_formulas_say():
    """By hand: one block each."""
    scale, low = np.float16(0.25), np.float16(-1.5)
    numbers = np.arange(-16, 16, dtype=np.int8)
    raw = np.frombuffer(scale.tobytes() + numbers.tobytes(), dtype=np.uint8)
    assert np.array_equal(KINDS[8][2](raw), numbers * np.float32(0.25))
    halves = np.arange(16, dtype=np.uint8) | (np.arange(15, -1, -1, dtype=np.uint8) << 4)
    expected = np.concatenate([np.arange(16), np.arange(15, -1, -1)]).astype(np.float32)
    raw = np.frombuffer(scale.tobytes() + low.tobytes() + halves.tobytes(), dtype=np.uint8)
    assert np.array_equal(KINDS[3][2](raw), expected * 0.25 - 1.5)
    raw = np.frombuffer(scale.tobytes() + halves.tobytes(), dtype=np.uint8)
    assert np.array_equal(KINDS[2][2](raw), (expected - 8) * 0.25)
    assert np.array_equal(KINDS[1][2](np.frombuffer(low.tobytes(), dtype=np.uint8)), [-1.5])


def refuse(path, tmp_path, words):
    with pytest.raises(InputError, match=words) as error:
        import_model(str(path), str(tmp_path / "out"))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_damaged_files_and_other_models_are_one_line(file, tmp_path):
    whole = file.read_bytes()
    for cut in (0, 3, 20, 700, len(whole) - 40):
        file.write_bytes(whole[:cut])
        refuse(file, tmp_path, "truncated or not a GGUF file")
    refuse(write_gguf(file, {**ABOUT, "general.architecture": "gemma"}, {}), tmp_path, "'gemma', expected 'llama'")
    scaled = {**ABOUT, "llama.rope.scaling.type": "yarn"}
    refuse(write_gguf(file, scaled, {}), tmp_path, "scaled rotary positions")
    without = {name: value for name, value in ABOUT.items() if name != "llama.block_count"}
    refuse(write_gguf(file, without, {}), tmp_path, "does not say llama.block_count")
    refuse(write_gguf(file, ABOUT, {"strange.weight": torch.ones(3)}), tmp_path, "strange.weight is no weight")
