"""Documents of a pool are shared out to batches: each once, within the limits, of one path where there are enough."""

import pytest
import torch
from factories import build_model
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fairseq")
from sd_fairseq.plugin.generation.by_path import Limits, group, select  # noqa: E402

SPACE = build_model().space
PADDING = 1


def decide(paths):
    keep = torch.ones(len(paths), SPACE.num_switches, dtype=torch.bool)
    for row, path in enumerate(paths):
        keep[row, path % SPACE.num_switches] = path == 0
    return SPACE.to_decisions(keep, torch.zeros(len(paths), dtype=torch.long))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), min_size=1, max_size=60), st.data())
def test_every_row_stands_in_one_batch_within_the_limits(rows, data):
    limits = Limits(data.draw(st.none() | st.integers(1, 9)), data.draw(st.none() | st.integers(30, 90)))
    paths, lengths = zip(*rows)
    batches = group(decide(paths), SPACE, list(lengths), limits)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        assert limits.sentences is None or len(batch) <= limits.sentences
        assert limits.tokens is None or len(batch) * max(lengths[row] for row in batch) <= limits.tokens


def test_only_what_is_left_over_is_mixed():
    paths = [0, 1, 2] * 11
    batches = group(decide(paths), SPACE, [5] * 33, Limits(8, None))
    mixed = [batch for batch in batches if len({paths[row] for row in batch}) > 1]
    assert len(batches) == 3 + 2  # of 11 documents a path 8 make a batch, three times 3 are left over
    assert sorted(map(len, batches)) == [1, 8, 8, 8, 8] and len(mixed) == 1


@pytest.mark.parametrize("left", [True, False])
def test_a_part_of_a_batch_has_no_columns_of_padding_only(left):
    tokens = torch.tensor([[4, 5, 6, 2], [PADDING, PADDING, 7, 2] if left else [7, 2, PADDING, PADDING]])
    inputs = {"src_tokens": tokens, "src_lengths": torch.tensor([4, 2]), "decision_log": []}
    sample = {"id": torch.tensor([8, 9]), "nsentences": 2, "target": tokens, "net_input": inputs}
    part = select(sample, torch.tensor([1]), PADDING)
    assert part["net_input"]["src_tokens"].tolist() == [[7, 2]] and part["id"].tolist() == [9]
    assert part["net_input"]["src_lengths"].tolist() == [2] and "decision_log" not in part["net_input"]
