"""Decision rules: what each method's schedule says at every step, and how a user writes it."""

import math

import pytest
import torch

from sd_fairseq.decision.confidence_rules import MEASURES, confidence
from sd_fairseq.decision.decisions import DecisionSpace
from sd_fairseq.decision.rule_notation import RULES, build_rule, is_rule, read_rule
from sd_fairseq.decision.rules import DecisionRule, bit_reversed
from sd_fairseq.errors import InputError

DEPTHS = range(3, 13)
STEPS = 70


def runs(text, layers, steps=STEPS):
    """Sets of layers that run at every step."""
    schedule = build_rule(text, layers).schedule(steps, torch.device("cpu"))
    return [set(row.nonzero().flatten().tolist()) for row in schedule]


def schedules():
    for layers in DEPTHS:
        for least in range(2, layers + 1):
            for over in (1, 3, 7, 64):
                yield layers, least, over


def test_a_schedule_only_shrinks():
    """Also seen where a layer comes back for one step: it would miss keys and values."""
    for layers, least, over in schedules():
        for text in (f"hsd:min={least},over={over}", f"skipdecode:min={least},over={over}"):
            sets = runs(text, layers)
            assert all(later <= earlier for earlier, later in zip(sets, sets[1:])), (text, layers)
            assert len(sets[-1]) == least


def test_a_hierarchical_schedule_skips_as_many_as_its_formula_and_never_the_ends():
    for layers, least, over in schedules():
        for step, running in enumerate(runs(f"hsd:min={least},over={over}", layers)):
            assert len(running) == layers - math.floor((layers - least) * min(1, step / over) + 1e-9), (layers, step)
            assert {0, layers - 1} <= running
    for running in runs("hsd:min=5,bottom=2,top=3,over=9", 9):
        assert {0, 1, 6, 7, 8} <= running


def test_skipped_layers_of_a_hierarchical_schedule_are_spread_evenly():
    """Any first few of the order: each half of the layers has half of them, each quarter a quarter, up to one."""
    for bits in range(1, 6):
        order = bit_reversed(2**bits)
        assert sorted(order) == list(range(2**bits))
        for count in range(1, 2**bits + 1):
            for parts in (2, 4):
                shares = [sum(place * parts // 2**bits == part for place in order[:count]) for part in range(parts)]
                assert max(shares) - min(shares) <= 1, (bits, count)
    assert sorted(bit_reversed(11)) == list(range(11)) and bit_reversed(1) == [0] and bit_reversed(0) == []


def test_skipdecode_falls_linearly_and_keeps_the_bottom_and_the_top():
    for layers, least, over in schedules():
        for most in range(least, layers + 1):
            for step, running in enumerate(runs(f"skipdecode:max={most},min={least},over={over}", layers)):
                count = most - math.floor((most - least) * min(1, step / over) + 1e-9)
                assert running == {0} | set(range(layers - count + 1, layers)), (layers, least, most, over, step)


def test_unified_layer_skipping_keeps_the_ends_and_the_same_evenly_spaced_layers():
    for layers in DEPTHS:
        for kept in range(2, layers + 1):
            sets = runs(f"uls:speedup={layers / kept}", layers)
            running = sorted(sets[0])
            assert all(one == sets[0] for one in sets)
            assert running[0] == 0 and running[-1] == layers - 1 and len(running) == int(layers / (layers / kept))
            gaps = [right - left for left, right in zip(running, running[1:])]
            assert max(gaps) - min(gaps) <= 1, (layers, kept)


def test_narrowed_decisions_are_the_decisions_and_the_schedule():
    space = DecisionSpace.build(3, 5, parts=("encoder", "decoder"))
    keep = torch.rand(4, space.num_switches) < 0.5
    decisions = space.to_decisions(keep, torch.zeros(4, dtype=torch.long))
    rule = build_rule("hsd:min=2,over=4", 5)
    for step, running in enumerate(runs("hsd:min=2,over=4", 5, 6)):
        narrow = rule.narrow(decisions, step)
        for site in ("encoder_attention", "encoder_ffn"):
            assert torch.equal(getattr(narrow, site), getattr(decisions, site))
        for site in ("decoder_attention", "decoder_cross_attention", "decoder_ffn"):
            for layer in range(5):
                expected = getattr(decisions, site)[:, layer] & (layer in running)
                assert torch.equal(getattr(narrow, site)[:, layer], expected)


def test_the_methods_own_rule_takes_nothing_away():
    rule, space = build_rule("", 5), DecisionSpace.build(3, 5)
    decisions = space.keep_all(2, torch.device("cpu"))
    assert type(rule) is DecisionRule and rule.narrow(decisions, 3) is decisions
    assert rule.schedule(4, torch.device("cpu")) is None and not rule.by_confidence and not rule.layers_ending(1)


def test_calms_threshold_falls_from_c_to_nine_tenths_of_it():
    rule = build_rule("calm:threshold=0.8,tau=4,length=10", 6)
    steps = torch.arange(200)
    found = rule.thresholds(steps)
    expected = [0.8 * (0.9 + 0.1 * math.exp(-4 * step / 10)) for step in range(200)]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert abs(float(found[0]) - 0.8) < 1e-6 and abs(float(found[-1]) - 0.72) < 1e-6


def test_confidences_are_what_they_are_called():
    logits, x = torch.randn(7, 3, 11, dtype=torch.float64), torch.randn(7, 3, 5)
    probabilities = logits.softmax(dim=-1).sort(dim=-1, descending=True).values
    torch.testing.assert_close(confidence("max", x, x, logits).double(), probabilities[..., 0], atol=1e-6, rtol=0)
    gap = probabilities[..., 0] - probabilities[..., 1]
    torch.testing.assert_close(confidence("gap", x, x, logits).double(), gap, atol=1e-6, rtol=0)
    torch.testing.assert_close(confidence("cosine", 3 * x, x, None), torch.ones(7, 3))
    torch.testing.assert_close(confidence("cosine", -x, x, None), -torch.ones(7, 3))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_higher_threshold_lets_fewer_leave(measure):
    x, before, weight = torch.randn(50, 8), torch.randn(50, 8), torch.randn(8, 4)
    steps, left = torch.zeros(50, dtype=torch.long), []
    for threshold in (0, 0.2, 0.6, 1.1):
        rule = build_rule(f"calm:confidence={measure},threshold={threshold}", 6)
        left.append(rule.leaves(x, before, steps, lambda states: states @ weight)[0])
    for more, fewer in zip(left, left[1:]):
        assert bool((fewer <= more).all())
    assert left[0].any() and not left[-1].any()


def test_where_tokens_may_leave():
    calm, free = build_rule("calm:first=2", 5), build_rule("free:exit=2", 5)
    assert [layer for layer in range(7) if calm.exits_after(layer, 5)] == [2, 3, 4]
    assert [layer for layer in range(7) if free.exits_after(layer, 5)] == [2]
    assert free.needs_beam_1 and not calm.needs_beam_1


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_all_its_values_and_reads_what_it_says(name):
    rule = build_rule(name, 6)
    assert is_rule(name) and build_rule(f"{name}:", 6) == rule == build_rule(rule.text, 6)
    assert [pair.partition("=")[0] for pair in rule.text.partition(":")[2].split(",")] == list(RULES[name].values)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("sparse", "'sparse': expected one of hsd"),
        ("hsd:depth=3", "found 'depth=3', expected hsd:key=value,... of min, over, bottom, top"),
        ("hsd:min=2,min=3", "found 'min' twice"),
        ("hsd:min", "min is '', expected a whole number from 1 on"),
        ("hsd:over=0", "over is '0', expected a whole number from 1 on"),
        ("hsd:over=2.5", "over is '2.5', expected a whole number"),
        ("uls:speedup=0.5", "speedup is '0.5', expected a number from 1 on"),
        ("uls:speedup=nan", "speedup is 'nan'"),
        ("calm:threshold=inf", "threshold is 'inf'"),
        ("calm:confidence=entropy", "confidence is 'entropy', expected one of gap, max, cosine"),
    ],
)
def test_a_rule_that_cannot_be_read_is_one_line(text, reason):
    with pytest.raises(InputError) as caught:
        read_rule(text)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("hsd:min=1", "min is 1, expected 2..6 in this model"),
        ("hsd:min=7", "min is 7, expected 2..6"),
        ("hsd:bottom=6", "bottom is 6, expected 1..5"),
        ("hsd:bottom=3,top=4", "top is 4, expected 1..3"),
        ("hsd:bottom=2,top=2,min=3", "min is 3, expected 4..6"),
        ("skipdecode:max=2,min=3", "max is 2, expected 3..6"),
        ("skipdecode:bottom=4,min=4", "min is 4, expected 5..6"),
        ("uls:speedup=4", "speedup leaves 1 of 6 decoder layers, expected at least 2"),
        ("calm:first=6", "first is 6, expected 1..5"),
        ("free:exit=6", "exit is 6, expected 1..5"),
    ],
)
def test_values_that_a_model_cannot_have_are_one_line(text, reason):
    with pytest.raises(InputError) as caught:
        build_rule(text, 6)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
