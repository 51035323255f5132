"""On a GPU what runs elsewhere on a CPU: fp16, bf16 and mixed precision, generation in half precision, NCCL."""

import re
from functools import partial

import pytest
import torch
from dropin import stand_ins
from dropin.workers import SWITCHABLE, TASK, TRAINING, build_data, load, run, train_together
from factories import build_model, build_switchable_twin, random_batch

from sd_fairseq.decision.trace import read_trace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch finds none"),
]
POLICY_LR = 0.013
UPDATES = 20
PRECISIONS = {
    "fp16": (["--fp16"], None),
    "fp16-no-flatten-grads": (["--fp16", "--fp16-no-flatten-grads"], None),
    "memory-efficient-fp16": (["--memory-efficient-fp16"], None),
    "amp": (["--amp"], None),
    "bf16": ([], partial(stand_ins.options_as_by_hydra, bf16=True)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("fairseq")
    return build_data(tmp_path_factory.getbasetemp() / "dropin-data")


def training(data, *options):
    policy = ["--sd-policy-lr", POLICY_LR, "--sd-tolerance", 0, "--clip-norm", 0.1, "--dropout", 0.1]
    return [data, *TASK, *TRAINING, *SWITCHABLE, *policy, "--distributed-world-size", 1, *options]


def policy_of(model):
    return torch.cat([value.reshape(-1) for key, value in model.items() if key.startswith("encoder.policy.")])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_twenty_updates_leave_a_float32_policy_that_moved_by_its_own_learning_rate(data, tmp_path, precision):
    options, prepare = PRECISIONS[precision]
    command = training(data, *options, "--train-subset", "valid", "--batch-size", 8, "--save-dir", tmp_path)
    command += ["--disable-validation", "--save-interval-updates", 1]
    command.remove("--no-epoch-checkpoints")
    log = run("train", [*command, "--max-update", UPDATES], tmp_path / "log", prepare=prepare)
    first, last = (load(tmp_path / f"checkpoint{number}.pt")["model"] for number in (1, 2))
    step = (policy_of(last) - policy_of(first)).abs().max()  # Adam's second step is about its learning rate too
    assert POLICY_LR / 10 < float(step) < 2 * POLICY_LR
    end = load(tmp_path / "checkpoint_last.pt")["model"]
    ours = {key: value for key, value in end.items() if key.startswith(("encoder.policy.", "policy_learner."))}
    assert {value.dtype for value in ours.values()} == {torch.float32}
    assert all(bool(torch.isfinite(value).all()) for value in ours.values())
    assert float(end["policy_learner.steps"]) == UPDATES
    losses = [float(value) for value in re.findall(r'"nll_loss": "([\d.]+)"', log)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["fp16", "memory-efficient-fp16", "amp"])
def test_updates_that_overflow_do_not_count_for_the_policy(data, tmp_path, precision):
    options = [*PRECISIONS[precision][0], "--fp16-init-scale", 2**40, "--sd-policy-warmup-updates", 2]
    command = training(data, *options, "--batch-size", 10, "--disable-validation", "--save-dir", tmp_path)
    log = run("train", [*command, "--max-update", 6], tmp_path / "log")
    assert "overflow detected" in log
    assert float(load(tmp_path / "checkpoint_last.pt")["model"]["policy_learner.steps"]) == 6


def test_generation_in_half_precision_covers_the_test_set_and_its_trace(data, tmp_path):
    command = training(data, "--fp16", "--batch-size", 10, "--disable-validation", "--save-dir", tmp_path)
    run("train", [*command, "--max-update", UPDATES], tmp_path / "log")
    trace = tmp_path / "trace.jsonl"
    options = ["--path", tmp_path / "checkpoint_last.pt", "--beam", 4, "--max-len-b", 12, "--batch-size", 5]
    output = run("generate", [data, *TASK, *options, "--fp16", "--sd-trace", trace], tmp_path / "generated")
    scores = re.findall(r"^H-(\d+)\t(\S+)\t", output, re.MULTILINE)
    assert sorted(int(number) for number, _ in scores) == list(range(12))
    assert all(-100 < float(score) <= 0 for _, score in scores)
    assert [record.id for record in read_trace(str(trace))] == list(range(12))
    assert all(record.seconds > 0 for record in read_trace(str(trace)))


def test_with_every_switch_open_the_model_is_fairseqs_bart_in_half_precision():
    bart = build_model("bart_base")
    switchable = build_switchable_twin(bart)
    bart, switchable = bart.half().cuda(), switchable.half().cuda()
    batch = random_batch(dictionary=bart.encoder.dictionary)
    tokens = [tensor.cuda() for tensor in (batch.src_tokens, batch.src_lengths, batch.prev_output_tokens)]
    with torch.no_grad():
        expected, found = bart(*tokens)[0], switchable(*tokens)[0]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-3, atol=2e-2)
    assert {p.dtype for p in switchable.encoder.policy.parameters()} == {torch.float32}


def test_mixed_precision_around_the_policy_changes_nothing_in_it():
    model = build_model().cuda()
    state = torch.randn(5, model.encoder.embed_tokens.embedding_dim, device="cuda")
    outside = model.encoder.policy([state])
    with torch.autocast("cuda", dtype=torch.float16):
        inside = model.encoder.policy([state])
    assert inside.keep_logits.dtype == torch.float32 and torch.equal(inside.keep_logits, outside.keep_logits)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("engine", [["legacy_ddp"], ["pytorch_ddp", "--find-unused-parameters"]], ids=" ".join)
def test_two_gpus_learn_what_one_learns_over_nccl(data, tmp_path, engine):
    command = training(data, "--batch-size", 1, "--dropout", 0, "--disable-validation", "--no-save", "--max-update", 8)
    command += ["--optimizer", "sgd", "--lr", 0.5]
    one = train_together(1, [*command, "--update-freq", 2], tmp_path / "one", place=lambda rank: [])

    def on_its_own_gpu(rank):
        return ["--device-id", rank, "--distributed-backend", "nccl"]

    two = train_together(2, [*command, "--ddp-backend", *engine], tmp_path / "two", place=on_its_own_gpu)
    left, right, expected = (rank["model"] for rank in (*two, *one))
    for key, value in expected.items():
        assert torch.equal(left[key].cpu(), right[key].cpu()), f"{key} differs between the ranks"
        torch.testing.assert_close(left[key].cpu(), value.cpu(), rtol=0, atol=1e-4)
