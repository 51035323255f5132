"""Half and mixed precision: the backbone's business; the policy, its optimizer and its mathematics stay float32."""

from functools import partial

import pytest
import torch
from dropin import stand_ins
from dropin.workers import (
    SWITCHABLE,
    TASK,
    TRAINING,
    build_data,
    fail_or_finish,
    load,
    run,
    start,
)
from factories import build_model, build_tiny_space
from training import build_samples, build_training

from sd_fairseq.decision.layerwise_policy import LayerwisePolicyNetwork
from sd_fairseq.decision.policy import PolicyNetwork

POLICY_LR = 0.013
OPTIONS = [
    *SWITCHABLE,
    *("--cpu", "--disable-validation", "--train-subset", "valid", "--batch-size", "8", "--dropout", "0"),
    *("--sd-policy-lr", str(POLICY_LR), "--sd-tolerance", "0", "--clip-norm", "1e-4"),
]
# What runs on a CPU as it is, and what runs there once fairseq's look at the GPU's number is answered.
PRECISIONS = {
    "float32": ([], None),
    "fp16": ([], stand_ins.flat_gradients_on_cpu),
    "fp16-no-flatten-grads": (["--fp16", "--fp16-no-flatten-grads"], None),
    "memory-efficient-fp16": (["--memory-efficient-fp16"], None),
    "amp": (["--amp"], stand_ins.loss_scaler_on_cpu),
    "bf16": ([], partial(stand_ins.options_as_by_hydra, bf16=True)),
    "memory-efficient-bf16": ([], partial(stand_ins.options_as_by_hydra, bf16=True, memory_efficient_bf16=True)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("fairseq")
    return build_data(tmp_path_factory.getbasetemp() / "dropin-data")


def train(data, folder, *options, prepare=None):
    """Trains and returns the checkpoint and the log."""
    log = folder / "log"
    every_epoch = [option for option in TRAINING if option != "--no-epoch-checkpoints"]
    output = run("train", [data, *TASK, *every_epoch, *OPTIONS, "--save-dir", folder, *options], log, prepare=prepare)
    return load(folder / "checkpoint_last.pt"), output


@pytest.fixture(scope="module")
def checkpoints(data, tmp_path_factory):
    """Checkpoints after one and after four updates in every precision; made when asked for."""
    made = {}

    def get(precision):
        if precision not in made:
            options, prepare = PRECISIONS[precision]
            folder = tmp_path_factory.mktemp(precision)
            last, _ = train(data, folder, *options, "--max-update", 4, prepare=prepare)
            made[precision] = load(folder / "checkpoint1.pt")["model"], last  # an epoch is one update here
        return made[precision]

    return get


def policy_of(model):
    return torch.cat([value.reshape(-1) for key, value in model.items() if key.startswith("encoder.policy.")])


@pytest.fixture(scope="module")
def fresh_policy(data, tmp_path_factory):
    """The policy before its first update; every training here starts from it."""
    folder = tmp_path_factory.mktemp("fresh")
    model = train(data, folder, "--max-update", 1, "--sd-policy-lr", "1e-30")[0]["model"]
    return policy_of(model)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_policy_multiplier_and_moments_are_float32_and_finite(checkpoints, precision):
    model = checkpoints(precision)[1]["model"]
    ours = {key: value for key, value in model.items() if key.startswith(("encoder.policy.", "policy_learner."))}
    assert {key: value.dtype for key, value in ours.items() if value.dtype != torch.float32} == {}
    assert all(bool(torch.isfinite(value).all()) for value in ours.values())
    assert float(ours["policy_learner.steps"]) == 4
    assert float(ours["policy_learner.second_moment"].max()) > 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_policy_moves_with_its_own_learning_rate_whatever_the_backbones_clipping_and_loss_scale(
    checkpoints, fresh_policy, precision
):
    """Adam's first step is its learning rate in every coordinate whose gradient is well above its epsilon."""
    moved = (policy_of(checkpoints(precision)[0]) - fresh_policy).abs()
    assert float(moved.max()) == pytest.approx(POLICY_LR, rel=1e-3)
    assert float((moved > 0.9 * POLICY_LR).float().mean()) > 0.2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_backbones_optimizer_does_not_hold_the_policy(checkpoints, precision):
    checkpoint = checkpoints(precision)[1]
    shapes = {key: value.numel() for key, value in checkpoint["model"].items()}
    held = sum(state["exp_avg"].numel() for state in checkpoint["last_optimizer_state"]["state"].values())
    backbone = build_backbone_size(shapes)
    assert held == backbone


def build_backbone_size(sizes):
    """Elements of all parameters but the policy's; shared embeddings count once, buffers not at all."""
    shared = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
    left_out = ("encoder.policy.", "policy_learner.", "encoder.version", "decoder.version", *shared)
    return sum(size for key, size in sizes.items() if not key.startswith(left_out))


@pytest.mark.parametrize("precision", ["fp16-no-flatten-grads", "memory-efficient-fp16"])
def test_an_update_that_an_overflow_skips_leaves_the_policy_alone(data, tmp_path, precision):
    """A scale of 2^24 overflows at first; once it has come down, everything goes as if it had never been there."""
    options = [*PRECISIONS[precision][0], "--max-update", 3, "--lr", "1e-9"]
    calm, _ = train(data, make(tmp_path / "calm"), *options)
    prepare = stand_ins.overflow_on_cpu
    wild, log = train(data, make(tmp_path / "wild"), *options, "--fp16-init-scale", 2**24, prepare=prepare)
    assert log.count("gradient overflow detected") >= 2
    assert float(wild["model"]["policy_learner.steps"]) == 3
    assert torch.equal(policy_of(wild["model"]), policy_of(calm["model"]))
    for name in ("first_moment", "second_moment", "violation", "multiplier"):
        assert torch.equal(wild["model"][f"policy_learner.{name}"], calm["model"][f"policy_learner.{name}"]), name


def make(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("warmup", [0, 2], ids=["joint", "policy first"])
def test_an_update_that_amps_loss_scaler_skips_and_fairseq_repeats_counts_once(data, tmp_path, warmup):
    options = ["--amp", "--max-update", 3, "--lr", "1e-9", "--sd-policy-warmup-updates", warmup]
    prepare = stand_ins.loss_scaler_on_cpu
    calm, _ = train(data, make(tmp_path / "calm"), *options, "--fp16-init-scale", 2**4, prepare=prepare)
    wild, log = train(data, make(tmp_path / "wild"), *options, "--fp16-init-scale", 2**126, prepare=prepare)
    assert log.count("AMP: overflow detected") >= 1
    assert float(wild["model"]["policy_learner.steps"]) == 3
    torch.testing.assert_close(policy_of(wild["model"]), policy_of(calm["model"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "amp"])
def test_amp_on_a_cpu_computes_products_in_bfloat16_and_the_weights_gradients_in_float32(mixed):
    amp_optimizer = pytest.importorskip("fairseq.optim.amp_optimizer")

    class WithoutLossScaler(amp_optimizer.AMPOptimizer):
        def __init__(self):
            pass

        def backward(self, loss):
            loss.backward()

    training = build_training()
    seen = set()
    training.model.encoder.layers[0].fc1.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    optimizer = WithoutLossScaler() if mixed else training.optimizer
    (sample,) = build_samples()
    training.task.train_step(sample, training.model, training.criterion, optimizer, 0)
    assert seen == {torch.bfloat16 if mixed else torch.float32}
    gradients = {p.grad.dtype for p in training.model.parameters() if p.grad is not None}
    assert gradients == {torch.float32}


@pytest.mark.parametrize("kind", [PolicyNetwork, LayerwisePolicyNetwork])
@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
def test_a_cast_of_the_model_changes_no_bit_of_what_the_policy_says(kind, cast):
    space = build_tiny_space()
    policy = kind(16, space)
    states = [torch.randn(5, 16) for _ in policy.stages]
    before = policy(states)
    after = cast(policy)(states)
    assert after.keep_logits.dtype == after.token_logits.dtype == torch.float32
    assert torch.equal(before.keep_logits, after.keep_logits) and torch.equal(before.token_logits, after.token_logits)


@pytest.mark.parametrize("kind", [PolicyNetwork, LayerwisePolicyNetwork])
def test_mixed_precision_around_the_policy_changes_no_bit_of_it(kind):
    policy = kind(16, build_tiny_space())
    states = [torch.randn(5, 16) for _ in policy.stages]
    outside = policy(states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = policy(states)
        log_prob = inside.log_prob(inside.mode())
    assert log_prob.dtype == torch.float32
    assert torch.equal(outside.keep_logits, inside.keep_logits) and torch.equal(
        outside.token_logits, inside.token_logits
    )


@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_a_half_precision_model_hands_its_policy_float32_means(cast):
    """1,000 positions of 400 add up to more than half precision can hold."""
    model = cast(build_model(max_source_positions=1100))
    with torch.no_grad():
        final = model.encoder.layers[0].final_layer_norm
        final.weight.zero_()
        final.bias.fill_(400.0)
    source = torch.full((2, 1000), 5)
    source[:, -1] = model.encoder.dictionary.eos()
    states = model.encoder(source)["policy_states"]
    assert states[0].dtype == torch.float32
    torch.testing.assert_close(states[0], torch.full_like(states[0], 400.0))


@pytest.mark.parametrize("options", [["--fp16"], ["--bf16"], ["--memory-efficient-bf16"]], ids=" ".join)
def test_what_fairseq_cannot_do_on_a_cpu_is_refused_in_one_line(data, tmp_path, options):
    command = [data, *TASK, *TRAINING, *OPTIONS, *options, "--save-dir", tmp_path, "--max-update", 1]
    process = start("train", command, tmp_path / "log")
    (output,) = fail_or_finish([process], [tmp_path / "log"])
    assert process.exitcode == 1 and "Traceback" not in output, output[-2000:]
    last = output.splitlines()[-1]
    assert last.startswith("sd_fairseq: error: ") and options[0] in last
