"""An output depends on its text alone: 250 real texts, one at a time, in full batches and in shuffled order."""

import gzip
import json
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pytest
import torch
from factories import build_model, undecide

pytest.importorskip("fairseq")

from fairseq.data import Dictionary  # noqa: E402

from sd_fairseq.decision.decisions import SITES  # noqa: E402
from sd_fairseq.plugin.tasks.switchable_translation import (  # noqa: E402
    SwitchableTranslationConfig,
    SwitchableTranslationTask,
)

DATA = Path(__file__).resolve().parents[2] / "examples" / "data" / "debian" / "valid.jsonl.gz"
TEXTS = 250
SIZE = {"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2}
SIZE.update({"encoder_layers": 3, "decoder_layers": 2, "decoder_attention_heads": 2})
SOURCE_POSITIONS = 48
SEARCH = Namespace(max_len_b=7, no_repeat_ngram_size=3, lenpen=1.0)


class Output(NamedTuple):
    """What was decided for a text, and its best hypothesis."""

    path: tuple
    tokens: List[int]
    score: float


def write_texts(folder: Path) -> None:
    """Writes the texts as raw data of fairseq, with a dictionary of their 1,000 most frequent words."""
    with gzip.open(str(DATA), "rt", encoding="utf-8") as lines:
        documents = [" ".join(json.loads(line)["document"].split()) for line, _ in zip(lines, range(TEXTS))]
    assert len(set(documents)) == TEXTS
    dictionary = Dictionary()
    for document in documents:
        dictionary.encode_line(document, append_eos=False)
    dictionary.finalize(nwords=1000, padding_factor=1)
    for side in ("source", "target"):
        dictionary.save(str(folder / f"dict.{side}.txt"))
        text = "".join(document + "\n" for document in documents)
        (folder / f"test.source-target.{side}").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder)
    options = {"data": str(folder), "source_lang": "source", "target_lang": "target", "dataset_impl": "raw"}
    limits = {"truncate_source": True, "max_source_positions": SOURCE_POSITIONS, "max_target_positions": 2000}
    config = SwitchableTranslationConfig(**options, **limits)
    config.train_subset, config.required_seq_len_multiple = "train", 1
    task = SwitchableTranslationTask.setup_task(config)
    task.load_dataset("test")
    return task


@pytest.fixture(scope="module")
@torch.no_grad()
def model(task):
    """A model with long and different outputs, whose policy keeps every sub-layer for about half of the texts."""
    torch.manual_seed(3)
    model = build_model(dictionary=task.source_dictionary, max_source_positions=SOURCE_POSITIONS, **SIZE)
    undecide(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.startswith("encoder.policy."):
            parameter.mul_(3)
    model.decoder.embed_tokens.weight[task.source_dictionary.eos()] /= 2
    samples = list(batches(task, max_tokens=1500))
    states = [model.encoder(sample["net_input"]["src_tokens"])["policy_states"][0] for sample in samples]
    logits = model.encoder.policy.stage_logits(1, torch.cat(states)).sort(dim=0).values  # [TEXTS, switches + J]
    middle = logits[TEXTS // 3 : -TEXTS // 3]
    # in the widest gap, so that no decision hangs on the last digit of a float
    widest = middle.diff(dim=0).argmax(dim=0, keepdim=True)  # [1, switches + J]
    border = (middle.gather(0, widest) + middle.gather(0, widest + 1)) / 2
    model.encoder.policy.heads.bias.sub_(border.squeeze(0))
    return model


def batches(task: Any, **limits: int):
    """Iterates over the task's own batches of at most so many tokens or sentences."""
    dataset = task.dataset("test")
    iterator = task.get_batch_iterator(dataset, disable_iterator_cache=True, **limits)
    assert (len(iterator) == TEXTS) == (limits == {"max_sentences": 1})
    return iterator.next_epoch_itr(shuffle=False)


def shuffled_batches(task: Any):
    """Iterates over batches of 1 to 40 texts in random order."""
    dataset, generator = task.dataset("test"), torch.Generator().manual_seed(8)
    order = torch.randperm(TEXTS, generator=generator).tolist()
    while order:
        size = int(torch.randint(1, 41, (1,), generator=generator))
        yield dataset.collater([dataset[index] for index in order[:size]])
        order = order[size:]


def generate(task: Any, model: Any, beam: int, samples: Any) -> Dict[int, Output]:
    """Runs what fairseq-generate runs for every batch; returns the outputs by text."""
    generator = task.build_generator([model], Namespace(beam=beam, **vars(SEARCH)))
    found = {}
    for sample in samples:
        log: list = []
        observed = {**sample, "net_input": {**sample["net_input"], "decision_log": log}}
        hypotheses = task.inference_step(generator, [model], observed)
        for row, (identity, nbest) in enumerate(zip(sample["id"].tolist(), hypotheses)):
            path = tuple(tuple(getattr(log[0], site)[row].tolist()) for site in SITES)
            path += (int(log[0].token_choice[row]),)
            found[identity] = Output(path, nbest[0]["tokens"].tolist(), float(nbest[0]["score"]))
    assert found.keys() == set(range(TEXTS))
    return found


def check_same(found: Dict[int, Output], expected: Dict[int, Output]) -> None:
    for identity, output in expected.items():
        assert found[identity].path == output.path, identity
        assert found[identity].tokens == output.tokens, identity
        assert abs(found[identity].score - output.score) < 1e-4, identity


@torch.no_grad()
@pytest.mark.parametrize("beam, search", [(1, "fast"), (4, "fast"), (4, "fairseq")])
def test_outputs_do_not_depend_on_the_batch(task, model, beam, search):
    task.cfg.sd_generator = search
    alone = generate(task, model, beam, batches(task, max_sentences=1))
    paths = {output.path for output in alone.values()}
    assert len(paths) > 20  # otherwise the batches would not mix decisions
    assert len({path[-1] for path in paths}) > 3
    assert len({tuple(output.tokens) for output in alone.values()}) > TEXTS / 4
    assert len({len(output.tokens) for output in alone.values()}) > 4  # sentences leave the search at different steps
    check_same(generate(task, model, beam, batches(task, max_tokens=1500)), alone)
    check_same(generate(task, model, beam, shuffled_batches(task)), alone)
