import pytest
import torch
from torch import nn

from sd_fairseq.execution.sublayers import expand_rows, find_kept_rows, run_gated, run_kept_rows, select_rows

STEPS, BATCH, DIM = 4, 6, 5
KEEPS = {
    "all": [True] * 6,
    "none": [False] * 6,
    "some": [True, False, False, True, True, False],
    "one": [False, False, False, False, False, True],
}


class Counted(nn.Module):
    """A residual sub-layer that notes what it was called with."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.calls = []

    def forward(self, x, rows):
        self.calls.append((tuple(x.shape), rows))
        return x + torch.tanh(self.linear(x))


def values_and_gradients(outputs, inputs):
    gradients = torch.autograd.grad(outputs.square().sum(), inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(gradients, inputs)]


@pytest.mark.parametrize("skipped", [None, torch.sin], ids=["identity", "function"])
@pytest.mark.parametrize("name", KEEPS)
def test_gathered_execution_equals_masked_execution_in_value_and_gradient(name, skipped):
    keep = torch.tensor(KEEPS[name])
    sublayer = Counted().double()
    x = torch.randn(STEPS, BATCH, DIM, dtype=torch.double, requires_grad=True)
    inputs = [x, *sublayer.parameters()]

    gathered = run_kept_rows(sublayer, x, find_kept_rows(keep.unsqueeze(1))[0], skipped)
    passed = x if skipped is None else skipped(x)
    masked = torch.where(keep.view(1, BATCH, 1), sublayer(x, None), passed)

    torch.testing.assert_close(gathered, masked)
    torch.testing.assert_close(values_and_gradients(gathered, inputs), values_and_gradients(masked, inputs))


def test_a_sublayer_that_no_row_keeps_is_not_called():
    sublayer = Counted()
    x = torch.randn(STEPS, BATCH, DIM)
    rows = find_kept_rows(torch.zeros(BATCH, 1, dtype=torch.bool))[0]
    assert run_kept_rows(sublayer, x, rows) is x
    assert sublayer.calls == []


def test_a_sublayer_that_every_row_keeps_runs_without_a_copy():
    sublayer = Counted()
    x = torch.randn(STEPS, BATCH, DIM)
    rows = find_kept_rows(torch.ones(BATCH, 1, dtype=torch.bool))[0]
    assert rows is None
    assert torch.equal(run_kept_rows(sublayer, x, rows, torch.sin), sublayer(x, None))
    assert sublayer.calls[0] == ((STEPS, BATCH, DIM), None)


def test_a_sublayer_sees_the_kept_rows_only():
    sublayer = Counted()
    rows = find_kept_rows(torch.tensor(KEEPS["some"]).unsqueeze(1))[0]
    run_kept_rows(sublayer, torch.randn(STEPS, BATCH, DIM), rows)
    shape, seen = sublayer.calls[0]
    assert shape == (STEPS, 3, DIM)
    assert seen.tolist() == [0, 3, 4]


def test_rows_that_skip_pass_bit_for_bit_and_the_input_is_left_alone():
    x = torch.randn(STEPS, BATCH, DIM)
    before = x.clone()
    keep = torch.tensor(KEEPS["some"])
    output = run_kept_rows(Counted(), x, find_kept_rows(keep.unsqueeze(1))[0])
    assert torch.equal(output[:, ~keep], before[:, ~keep])
    assert torch.equal(x, before)


def test_a_sublayer_under_autocast_gives_back_the_inputs_precision():
    x = torch.randn(STEPS, BATCH, DIM)
    output = run_kept_rows(lambda part, _: part.half(), x, torch.tensor([1, 2]))
    assert output.dtype == torch.float32
    torch.testing.assert_close(output[:, 1], x[:, 1].half().float())


def test_kept_rows_are_found_for_every_layer():
    keep = torch.rand(40, 7) < 0.5
    keep[:, 2] = True
    keep[:, 3] = False
    found = find_kept_rows(keep)
    assert found[2] is None
    assert found[3].numel() == 0
    for layer in (0, 1, 4, 5, 6):
        assert found[layer].tolist() == [row for row in range(40) if keep[row, layer]]


@pytest.mark.parametrize("dim", [0, 1])
def test_select_rows_is_index_select_of_what_is_there(dim):
    tensor = torch.randn(4, 4)
    rows = torch.tensor([3, 1])
    assert torch.equal(select_rows(tensor, rows, dim), tensor.index_select(dim, rows))
    assert select_rows(tensor, None, dim) is tensor
    assert select_rows(None, rows, dim) is None


def test_sentences_expand_to_their_beam_rows():
    assert expand_rows(torch.tensor([0, 2, 5]), 3).tolist() == [0, 1, 2, 6, 7, 8, 15, 16, 17]
    assert expand_rows(torch.tensor([0, 2]), 1).tolist() == [0, 2]
    assert expand_rows(torch.tensor([], dtype=torch.long), 4).tolist() == []
    assert expand_rows(None, 4) is None


@pytest.mark.parametrize("skipped", [None, torch.sin], ids=["identity", "function"])
def test_a_gate_mixes_each_rows_output_with_what_it_passes_on(skipped):
    gate, x, sublayer = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 0.25]), torch.randn(STEPS, BATCH, DIM), Counted()
    found = run_gated(sublayer, x, gate, skipped)
    passed, run = x if skipped is None else skipped(x), sublayer(x, None)
    for row, share in enumerate(gate.tolist()):
        torch.testing.assert_close(found[:, row], share * run[:, row] + (1 - share) * passed[:, row])
