"""``sd_exit_criterion``: each loss against its equation on a tiny model, its gradients, what is refused."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from factories import build_model
from training import PlainOptimizer, Training, build_samples, build_task

from sd_fairseq.plugin.criterions.distillation import Distiller
from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.guards.presets import Run
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
KINDS = pytest.mark.parametrize("kind", [{}, PRE_NORM], ids=["BART", "pre-norm"])
EPSILON, LAYERS = 0.1, 4


def build(task=None, arch="switchable_bart_base", **options):
    """The criterion of these ``sd_*`` options and a dense model with four decoder layers, in double precision."""
    torch.manual_seed(7)
    names = ("sd_exit_loss", "sd_exit_rule", "sd_exit_layer", "sd_exit_distance", "sd_distillation", "sd_teacher")
    given = {name: options.pop(name) for name in names if name in options}
    given.update({name: options.pop(name) for name in ("sentence_avg", "report_accuracy") if name in options})
    task = task or build_task()
    settings = {"sentence_avg": False, "label_smoothing": EPSILON, **given}
    criterion = task.build_criterion(Namespace(criterion="sd_exit_criterion", **settings))
    model = build_model(arch, **{"sd_policy": "dense", "decoder_layers": LAYERS, **options})
    return Training(task, model.double(), criterion, PlainOptimizer(model, 1e-4))


def smoothed(logits, target, padding=1):
    """Label-smoothed cross-entropy, token by token: (1 - e - e / (V - 1)) nll + e / (V - 1) sum_v nll_v, summed."""
    total, words = 0.0, logits.size(-1)
    small = EPSILON / (words - 1)
    for row in range(target.size(0)):
        for step in range(target.size(1)):
            if target[row, step] != padding:
                log_probs = logits[row, step].log_softmax(dim=-1)
                total = total - (1 - EPSILON - small) * log_probs[target[row, step]] - small * log_probs.sum()
    return total


def states_by_layer(model, sample):
    """States [T, B, C] after 0, 1, ... decoder layers: each by a hook on the layer itself."""
    found, hooks = [], []
    for layer in model.decoder.layers:
        hooks.append(layer.register_forward_hook(lambda _, inputs, output: found.append((inputs[0], output[0]))))
    model(**sample["net_input"], path=PathRequest("dense"))
    for hook in hooks:
        hook.remove()
    return [found[0][0], *(after for _, after in found)]


def check_near(found, expected):
    """Compares in single precision, which fairseq takes probabilities in."""
    torch.testing.assert_close(found.detach().float(), expected.detach().float(), rtol=1e-4, atol=1e-5)


def logits_of(model, states):
    x = states if model.decoder.layer_norm is None else model.decoder.layer_norm(states)
    return F.linear(x.transpose(0, 1), model.decoder.embed_tokens.weight)  # BART ties its head


@KINDS
def test_calm_is_the_sum_of_all_layers_losses_weighted_by_depth(kind):
    training, (sample,) = build(sd_exit_loss="calm", **kind), build_samples()
    states = states_by_layer(training.model, sample)
    losses = [smoothed(logits_of(training.model, one), sample["target"]) for one in states[1:]]
    expected = sum(number * loss for number, loss in enumerate(losses, start=1)) / (1 + 2 + 3 + 4)
    loss, size, figures = training.criterion(training.model, sample)
    check_near(loss, expected)
    assert size == sample["ntokens"]
    log_probs = logits_of(training.model, states[-1]).log_softmax(dim=-1)
    nll = F.nll_loss(log_probs.flatten(0, 1), sample["target"].flatten(), ignore_index=1, reduction="sum")
    check_near(figures["nll_loss"], nll)
    assert {"sd_exit_nll_1", "sd_exit_nll_2", "sd_exit_nll_3"} <= set(figures) and "sd_exit_nll_4" not in figures


@KINDS
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_free_is_two_weighted_losses_and_the_distance_of_their_states(kind, layer):
    options = {"sd_exit_loss": "free", "sd_exit_layer": layer, "sd_exit_distance": 0.3}
    training, (sample,) = build(**options, **kind), build_samples()
    states = states_by_layer(training.model, sample)
    two = [smoothed(logits_of(training.model, states[one]), sample["target"]) for one in (layer, LAYERS)]
    teachers = {1: [4], 2: [2, 4], 3: [2, 3, 4]}[layer]
    real, distance = sample["target"].ne(1).t(), 0.0
    for student, teacher in enumerate(teachers, start=1):
        distance = distance + (states[student] - states[teacher])[real].float().pow(2).mean(dim=-1).sum() / layer
    expected = (layer * two[0] + LAYERS * two[1]) / (layer + LAYERS) + 0.3 * distance
    loss, _, figures = training.criterion(training.model, sample)
    check_near(loss, expected)
    torch.testing.assert_close(figures["sd_exit_distance"].float(), distance.detach().float())


def test_free_leaves_after_a_quarter_of_the_layers_unless_told():
    training, (sample,) = build(sd_exit_loss="free"), build_samples()
    assert training.criterion.exits(4) == [1, 4] and training.criterion.exits(12) == [3, 12]
    assert set(training.criterion(training.model, sample)[2]) >= {"sd_exit_nll_1", "sd_exit_distance"}


def test_the_last_layer_alone_is_plain_cross_entropy():
    """Loss, gradients and figures of fairseq's own criterion."""
    training, (sample,) = build(), build_samples()
    plain = training.task.build_criterion(
        Namespace(
            criterion="label_smoothed_cross_entropy",
            **{"sentence_avg": False, "label_smoothing": EPSILON, "ignore_prefix_size": 0, "report_accuracy": False},
        )
    )
    found = []
    for criterion in (plain, training.criterion):
        training.model.zero_grad()
        loss, _, figures = criterion(training.model, sample)
        loss.backward()
        grads = [None if one.grad is None else one.grad.clone() for one in training.model.parameters()]
        found.append((loss.detach(), grads, {name: float(figures[name]) for name in ("loss", "nll_loss", "ntokens")}))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("sentences", [False, True])
def test_calms_gradient_is_that_of_its_equation(sentences):
    training, (sample,) = build(sd_exit_loss="calm", sentence_avg=sentences), build_samples([3])
    loss, size, _ = training.criterion(training.model, sample)
    assert size == (3 if sentences else sample["ntokens"])
    parameters = [one for one in training.model.parameters() if one.requires_grad]
    states = states_by_layer(training.model, sample)
    losses = [smoothed(logits_of(training.model, one), sample["target"]) for one in states[1:]]
    expected = sum(number * one for number, one in enumerate(losses, start=1)) / 10
    grads = [torch.autograd.grad(one, parameters, allow_unused=True) for one in (loss, expected)]
    assert sum(one is not None for one in grads[0]) > 50
    for found, wanted in zip(*grads):
        assert (found is None) == (wanted is None)
        if found is not None:
            check_near(found, wanted)


@pytest.mark.parametrize(
    "rule",
    ["skipdecode:max=4,min=2,over=6", "hsd:min=2,over=5", "uls:speedup=2", "skipdecode:max=3,min=1,bottom=0,over=4"],
)
def test_a_rule_trains_every_position_at_its_own_depth(rule):
    """The loss of a position is that of a model which runs the layers of that position's schedule."""
    from sd_fairseq.decision.rule_notation import build_rule

    training, (sample,) = build(sd_exit_rule=rule), build_samples()
    model, target = training.model, sample["target"]
    keep, expected = build_rule(rule, LAYERS).schedule(target.size(1), "cpu"), 0.0
    batch = sample["net_input"]
    for step in range(target.size(1)):  # a nested schedule: earlier tokens' keys are those of their own depth
        logits, state = None, {}
        encoded = model.encoder(batch["src_tokens"], batch["src_lengths"], path=PathRequest("dense"))
        model.decoder.rule = build_rule(rule, LAYERS)
        for one in range(step + 1):
            logits = model.decoder(batch["prev_output_tokens"][:, : one + 1], encoded, incremental_state=state)[0]
        expected = expected + smoothed(logits, target[:, step : step + 1])
        model.decoder.rule = build_rule("", LAYERS)
    assert not bool(keep.all())
    loss, _, _ = training.criterion(model, sample)
    check_near(loss, expected)
    assert model.decoder.rule.text == "", "generation chooses its own rule"
    loss.backward()
    for index, layer in enumerate(model.decoder.layers):
        ran = bool(keep[:, index].any())
        assert ran == (layer.fc2.weight.grad is not None and bool((layer.fc2.weight.grad != 0).any())), index


def test_skipdecode_is_the_last_layers_loss_under_the_rule_of_that_name():
    (sample,), losses, rule = build_samples(), [], "skipdecode:over=4"
    for options in ({"sd_exit_loss": "skipdecode", "sd_exit_rule": rule}, {"sd_exit_rule": rule}, {}):
        training = build(**options)
        losses.append(training.criterion(training.model, sample)[0].item())
    assert losses[0] == losses[1] != losses[2]
    assert build(sd_exit_loss="skipdecode").criterion.rule_text == "skipdecode"


def test_a_rule_that_keeps_all_is_plain_cross_entropy():
    (sample,) = build_samples()
    losses = []
    for rule in ("skipdecode:max=4,min=4", "hsd:min=4", "uls:speedup=1", None):
        training = build(sd_exit_rule=rule)
        losses.append(training.criterion(training.model, sample)[0].detach())
    for loss in losses[:-1]:
        torch.testing.assert_close(loss, losses[-1])


def test_every_exit_learns_from_the_teacher():
    training, (sample,) = (
        build(sd_exit_loss="calm", sd_distillation=0.4, sd_teacher="self", dropout=0.3),
        build_samples(),
    )
    model = training.model
    assert isinstance(training.criterion.distiller, Distiller)
    target, states = sample["target"], states_by_layer(model.eval(), sample)
    real = target.ne(1)
    wanted = logits_of(model, states[-1]).log_softmax(dim=-1)[real].detach()
    torch.manual_seed(3)
    states = states_by_layer(model.train(), sample)
    expected = 0.0
    for layer, one in enumerate(states[1:], start=1):
        log_probs = logits_of(model, one).log_softmax(dim=-1)
        divergence = F.kl_div(log_probs[real], wanted, reduction="sum", log_target=True)
        expected = expected + layer / 10 * (0.6 * smoothed(logits_of(model, one), target) + 0.4 * divergence)
    torch.manual_seed(3)
    check_near(training.criterion(model, sample)[0], expected)
    plain = build(sd_exit_loss="calm")
    validated = training.criterion(model.eval(), sample)[0]
    torch.testing.assert_close(validated, plain.criterion(plain.model, sample)[0])


@pytest.mark.parametrize(
    "options", [{"sd_exit_loss": "calm"}, {"sd_exit_loss": "free"}, {"sd_exit_loss": "skipdecode"}]
)
def test_it_learns_and_micro_batches_are_one_batch(options):
    losses, weights = [], []
    for split in ((8,), (3, 5)):
        training, samples = build(**options), build_samples(split)
        for update in range(4):
            logged = training.update(samples, update)
        losses.append(sum(float(one["loss"]) for one in logged))
        weights.append(training.backbone())
    first = build(**options)
    assert losses[0] < first.criterion(first.model, build_samples()[0])[0].item()
    torch.testing.assert_close(weights[0], weights[1])


def test_what_is_logged_is_each_exits_bits_a_token():
    from fairseq.logging import metrics

    training, samples = build(sd_exit_loss="free"), build_samples([3, 5])
    logs = [training.criterion(training.model, sample)[2] for sample in samples]
    with metrics.aggregate() as found:
        training.criterion.reduce_metrics(logs)
    values, tokens = found.get_smoothed_values(), sum(log["ntokens"] for log in logs)
    expected = sum(float(log["sd_exit_nll_1"]) for log in logs) / tokens / torch.log(torch.tensor(2.0))
    assert values["sd_exit_nll_1"] == pytest.approx(float(expected), abs=1e-3)
    assert values["sd_exit_distance"] == pytest.approx(
        sum(float(log["sd_exit_distance"]) for log in logs) / tokens, 1e-2
    )
    assert "nll_loss" in values and training.criterion.logging_outputs_can_be_summed()


def test_the_teacher_is_the_checkpoint_that_training_starts_from():
    task = build_task()
    task.run_options = Run(base="start.pt")
    with pytest.raises(InputError, match="--sd-teacher start.pt: no such file"):
        build(task, sd_distillation=0.5)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"sd_exit_rule": "slow"}, "--sd-exit-rule rule 'slow'"),
        ({"sd_exit_rule": "hsd:min=x"}, "--sd-exit-rule hsd:min=x: min is 'x'"),
        ({"sd_exit_rule": "calm"}, "found calm"),
        ({"sd_exit_rule": "hsd", "sd_exit_loss": "free"}, "found --sd-exit-loss free"),
        ({"sd_exit_rule": "hsd", "sd_exit_loss": "skipdecode"}, "found --sd-exit-rule hsd"),
        ({"sd_exit_layer": 2}, "--sd-exit-layer needs --sd-exit-loss free, found last"),
        ({"sd_exit_distance": -1.0, "sd_exit_loss": "free"}, "--sd-exit-distance -1.0"),
        ({"sd_distillation": 1.0, "sd_teacher": "self"}, "--sd-distillation 1.0"),
        ({"sd_distillation": 0.5}, "--sd-distillation needs --sd-teacher"),
        ({"sd_teacher": "self"}, "--sd-teacher needs --sd-distillation"),
        ({"report_accuracy": True}, "--report-accuracy"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_in_one_line(options, said):
    with pytest.raises(InputError) as error:
        build(**options)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "criterion, model, said",
    [
        ({}, {"sd_policy": "network"}, "--sd-policy dense"),
        ({"sd_exit_loss": "calm"}, {"arch": "switchable_t5_tiny"}, "found SwitchableT5Model"),
        ({}, {"arch": "switchable_llama_tiny"}, "found SwitchableLLaMAModel"),
        ({"sd_exit_loss": "free", "sd_exit_layer": 4}, {}, "--sd-exit-layer 4 is not in 1..3"),
        ({"sd_exit_rule": "hsd:min=9"}, {}, "--sd-exit-rule hsd:min=9"),
    ],
    ids=str,
)
def test_models_that_it_cannot_train_are_refused_in_one_line(criterion, model, said):
    training, (sample,) = build(**criterion, **model), build_samples()
    with pytest.raises(InputError) as error:
        training.criterion(training.model, sample)
    assert said.lower() in str(error.value).lower() and "\n" not in str(error.value)


def test_another_task_or_a_plain_bart_is_refused():
    from fairseq.models.bart.model import BARTModel
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    training, (sample,) = build(), build_samples()
    assert issubclass(type(training.model), BARTModel)
    dictionary = training.task.source_dictionary
    with pytest.raises(InputError, match="--task switchable_translation, found TranslationTask"):
        build(TranslationTask(TranslationConfig(), dictionary, dictionary))
    with pytest.raises(InputError, match="switchable_bart"):
        training.criterion(build_model("bart_base"), sample)


def test_position_rules_train_t5_too():
    training, (sample,) = build(sd_exit_rule="hsd:min=2,over=3", arch="switchable_t5_tiny"), build_samples()
    dense = build(arch="switchable_t5_tiny")
    assert training.criterion(training.model, sample)[0] != dense.criterion(dense.model, sample)[0]
