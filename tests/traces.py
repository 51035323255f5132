"""Records and generate outputs for the tests of trace and report."""

import random

from sd_fairseq.decision.trace import TraceRecord

WORDS = "a small tool that reads writes checks and plays music files for the desktop library of fast parsers".split()


def make_record(identity, **changes):
    """A valid record; any field can be given."""
    fields = {
        "id": identity,
        "source_tokens": 60,
        "kept_source_tokens": 60,
        "target_tokens": 9,
        "decoder_steps": 11,
        "beam": 4,
        "encoder_attention": "=111",
        "encoder_ffn": "=111",
        "decoder_attention": "111=",
        "decoder_cross_attention": "111=",
        "decoder_ffn": "1111",
        "token_strategy": "keep",
        "flops_generation": 900,
        "flops_generation_dense": 1000,
        "flops_paper": 800,
        "flops_paper_dense": 1000,
        "seconds": 0.5,
        "generation": "beam:4|lenpen:1",
        "model": "switchable_bart",
    }
    return TraceRecord(**{**fields, **changes})


def make_texts(count, seed=0):
    """(id, sentence) pairs of random words."""
    generator = random.Random(seed)
    return {index: " ".join(generator.choices(WORDS, k=8)) for index in range(count)}


def spoil(texts, share, seed=1):
    """Replaces a share of the words by others."""
    generator = random.Random(seed)
    spoiled = {}
    for index, text in texts.items():
        words = [generator.choice(WORDS) if generator.random() < share else word for word in text.split()]
        spoiled[index] = " ".join(words)
    return spoiled


def write_output(path, hypotheses, references):
    """Writes what fairseq-generate prints for these texts."""
    lines = []
    for index in sorted(hypotheses, key=lambda one: (one % 3, one)):  # batches come in any order
        lines += [f"S-{index}\tsource", f"T-{index}\t{references[index]}", f"H-{index}\t-0.5\t{hypotheses[index]}"]
        lines += [f"D-{index}\t-0.5\t{hypotheses[index]}", f"P-{index}\t" + " ".join(["-0.5"] * 9)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
