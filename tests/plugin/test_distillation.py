"""``--sd-distillation`` and ``--sd-teacher``."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from factories import TINY_OPTIONS, build_model, random_decisions
from training import build_criterion, build_samples, build_task, build_training

from sd_fairseq.plugin.criterions.distillation import Distiller, divergence
from sd_fairseq.plugin.criterions.policy_step import Evaluator
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.models.switchable_encoder import PathRequest


def test_divergence_is_torchs_and_impossible_outcomes_do_not_count():
    teacher, student = (torch.randn(5, 7).log_softmax(dim=-1) for _ in range(2))
    expected = F.kl_div(student, teacher, reduction="sum", log_target=True)
    torch.testing.assert_close(divergence(teacher, student), expected)
    assert float(divergence(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    masked = torch.tensor([[0.0, 1.0, float("-inf")]]).log_softmax(dim=-1)
    student = torch.tensor([[1.0, 0.0, float("-inf")]]).log_softmax(dim=-1).requires_grad_()
    found = divergence(masked, student)
    found.backward()
    expected = F.kl_div(student[:, :2], masked[:, :2], reduction="sum", log_target=True)
    torch.testing.assert_close(found, expected)
    assert bool(torch.isfinite(student.grad).all())


def test_the_dense_path_has_nothing_to_learn_from_itself():
    training, (sample,) = build_training(), build_samples()
    model = training.model.train()
    evaluator = Evaluator(model, sample, 1, 0.1)
    plain, _ = evaluator.run(PathRequest("dense"))
    evaluator.distiller = Distiller(0.3, None, training.task)
    mixed, _ = evaluator.run(PathRequest("dense"))
    torch.testing.assert_close(mixed.loss, 0.7 * plain.loss)
    assert torch.equal(mixed.nll, plain.nll) and torch.equal(mixed.per_example, plain.per_example)


def test_a_skipping_path_learns_from_the_dense_one_with_dropout_off():
    training, (sample,) = build_training({"dropout": 0.3}), build_samples()
    model = training.model
    path = PathRequest(decisions=random_decisions(model.space, 8, keep_probability=0.3))
    evaluator = Evaluator(model, sample, 1, 0.1)
    dense = evaluator.log_probs(model.eval()(**sample["net_input"], path=PathRequest("dense")))
    torch.manual_seed(5)
    output = model.train()(**sample["net_input"], path=path)
    expected = 0.6 * evaluator.quality(output).loss
    expected = expected + 0.4 * F.kl_div(evaluator.log_probs(output), dense, reduction="sum", log_target=True)
    evaluator.distiller = Distiller(0.4, None, training.task)
    torch.manual_seed(5)
    found, _ = evaluator.run(path)
    torch.testing.assert_close(found.loss, expected, atol=1e-3, rtol=1e-4)
    assert model.training


def save(folder, arch, **options):
    """Saves a model as fairseq does; returns its path and itself."""
    torch.manual_seed(9)
    model = build_model(arch, **options)
    path = folder / f"{arch}.pt"
    args = Namespace(arch=arch, task="translation", **TINY_OPTIONS)
    history = [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}]
    state = {"args": args, "cfg": None, "model": model.state_dict(), "optimizer_history": history}
    torch.save({**state, "extra_state": {"epoch": 1, "train_iterator": {"epoch": 1}}}, path)
    return path, model


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("arch", ["bart_base", "switchable_bart_base"])
def test_a_teacher_is_another_checkpoint_run_dense_and_never_saved(tmp_path, arch):
    path, teacher = save(tmp_path, arch)
    task, (sample,) = build_task(), build_samples()
    criterion = build_criterion(task, sd_distillation=0.5, sd_teacher=str(path))
    assert not list(criterion.parameters()) and not criterion.state_dict()
    model = build_training().model.train()
    evaluator = Evaluator(model, sample, 1, 0.1)
    options = {} if arch == "bart_base" else {"path": PathRequest("dense")}
    wanted = evaluator.log_probs(teacher(**sample["net_input"], **options)).detach()
    output = model(**sample["net_input"], path=PathRequest("dense"))
    expected = F.kl_div(evaluator.log_probs(output), wanted, reduction="sum", log_target=True)
    found = criterion.distiller.mix(evaluator, output, torch.zeros(()))
    torch.testing.assert_close(found, 0.5 * expected, atol=1e-3, rtol=1e-4)
    found.backward()
    assert not any(p.requires_grad for p in criterion.distiller.teacher.parameters())
    assert all(p.grad is None for p in criterion.distiller.teacher.parameters())


@pytest.mark.parametrize("options", [{}, {"sd_policy_freeze_update": 1}])
def test_training_mixes_and_validation_does_not(options):
    """Also once the policy is frozen."""
    losses = []
    for weight in (0.0, 0.5):
        teacher = {"sd_teacher": "self"} if weight else {}
        training, (sample,) = build_training(sd_distillation=weight, **teacher, **options), build_samples()
        training.update([sample], update=0)
        (logged,) = training.update([sample], update=2)
        validated = training.task.valid_step(sample, training.model.eval(), training.criterion.eval())[2]
        losses.append((float(logged["loss"]), float(validated["loss"]) - float(validated["nll_loss"])))
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == pytest.approx(0, abs=1e-3) == losses[1][1]  # label smoothing is 0 here


@pytest.mark.parametrize(
    "options,named",
    [
        ({"sd_distillation": 1.0, "sd_teacher": "self"}, "--sd-distillation 1.0"),
        ({"sd_distillation": -0.1, "sd_teacher": "self"}, "--sd-distillation -0.1"),
        ({"sd_teacher": "teacher.pt"}, "--sd-teacher needs --sd-distillation"),
        ({"sd_teacher": "no/such.pt", "sd_distillation": 0.5}, "--sd-teacher no/such.pt"),
    ],
)
def test_an_impossible_option_is_one_line(options, named):
    with pytest.raises(InputError) as caught:
        build_criterion(build_task(), **options)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_the_dense_path_runs_once_an_update_for_teacher_and_constraint(monkeypatch):
    """And gives what two passes would: the deployed-phase, an update that does not measure, and none without need."""
    counted = []
    forward = Evaluator.forward

    def count(self, model, **more):
        dense = more.get("path", PathRequest()).kind == "dense"
        counted.append(dense and not model.training)
        return forward(self, model, **more)

    monkeypatch.setattr(Evaluator, "forward", count)
    dense_passes = []
    for teacher, interval in (("self", 1), ("self", 2), (None, 1)):
        options = {"sd_distillation": 0.5, "sd_teacher": teacher} if teacher else {}
        training = build_training(sd_constraint_interval=interval, sd_tolerance=0.1, **options)
        for update in (0, 1):
            counted.clear()
            (logged,) = training.update(build_samples(), update)
            dense_passes.append(sum(counted))
        if interval == 1:
            with torch.no_grad():
                training.model.eval()
                (sample,) = build_samples()
                evaluator = Evaluator(training.model, sample, 1, 0.0)
                evaluator.dense_dropout_off()
                again, _ = evaluator.score(PathRequest("dense"))
            assert torch.equal(evaluator.quality(evaluator.dense_dropout_off()).per_example, again.per_example)
            assert "sd_quality_dense_dropout_off" in logged
    assert dense_passes == [1, 1, 1, 1, 1, 1]
