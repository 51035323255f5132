"""Many workers learn what one learns, whatever their examples skip; many shards generate what one process generates."""

import json
import re

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
    train_together,
)

from sd_fairseq.evaluation import report

UPDATES = 20
OPTIONS = [
    *SWITCHABLE,
    *("--dropout", "0", "--attention-dropout", "0", "--disable-validation", "--no-save"),
    # plain gradient descent, small steps of the policy: Adam blows the rounding of gradients near 0 up to whole steps
    *("--optimizer", "sgd", "--lr", "0.5", "--momentum", "0.5"),
    *("--sd-policy-lr", "5e-4", "--sd-tolerance", "0", "--sd-constraint-interval", "2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("fairseq")
    return build_data(tmp_path_factory.getbasetemp() / "dropin-data")


@pytest.fixture(scope="module")
def undecided(data, tmp_path_factory):
    """A checkpoint whose deployed paths differ from example to example."""
    folder = tmp_path_factory.mktemp("undecided")
    arguments = [data, *TASK, *TRAINING, *SWITCHABLE, "--cpu", "--disable-validation", "--batch-size", 10]
    run("train", [*arguments, "--save-dir", folder, "--max-update", 1], folder / "log")
    checkpoint = load(folder / "checkpoint_last.pt")
    generator = torch.Generator().manual_seed(3)
    for key, value in checkpoint["model"].items():
        if key.startswith("encoder.policy.") and key.endswith(("heads.weight", "hidden.bias")):
            value.copy_(torch.randn(value.shape, generator=generator))
        if key.startswith("encoder.policy.") and key.endswith("heads.bias"):
            value.zero_()
    torch.save(checkpoint, str(folder / "checkpoint_last.pt"))
    return folder / "checkpoint_last.pt"


def training(data, checkpoint, updates=UPDATES):
    resets = ["--reset-optimizer", "--reset-dataloader", "--reset-meters", "--restore-file", checkpoint]
    return [data, *TASK, *TRAINING, *OPTIONS, *resets, "--max-update", updates]


def assert_same_training(left, right):
    """Same multiplier, policy, moments and backbone to 1e-5."""
    assert left["num_updates"] == right["num_updates"]
    left, right = left["model"], right["model"]
    assert left.keys() == right.keys()
    apart = {key: float((right[key] - value).abs().max()) for key, value in left.items()}
    assert {key: distance for key, distance in apart.items() if not distance <= 1e-5} == {}


def assert_ranks_agree(ranks):
    """Every worker ends with the same model, bit for bit."""
    for other in ranks[1:]:
        assert [key for key, value in ranks[0]["model"].items() if not torch.equal(value, other["model"][key])] == []


@pytest.mark.parametrize("average", ["examples", "corpus"])
def test_one_worker_with_four_micro_batches_and_two_with_two_learn_as_from_one_batch(
    data, undecided, tmp_path, average
):
    """Every update sees the same eight pairs: as one batch, or cut into batches of 4, 2, 1 and 1 by their lengths."""
    eight = [*training(data, undecided), "--train-subset", "valid", "--sd-flops-average", average]
    (one_batch,) = train_together(1, [*eight, "--batch-size", 8], tmp_path / "one-batch")
    command = [*eight, "--max-tokens", 70]
    (four,) = train_together(1, [*command, "--update-freq", 4], tmp_path / "one-worker")
    assert '"num_updates": "20"' in (tmp_path / "one-worker" / "log.0").read_text()
    legacy = ["--update-freq", 2, "--ddp-backend", "legacy_ddp"]
    two = train_together(2, [*command, *legacy], tmp_path / "two-workers")
    start = load(undecided)["model"]
    assert float(one_batch["model"]["policy_learner.steps"]) == UPDATES  # --reset-optimizer: the policy's, too
    assert not torch.equal(one_batch["model"]["encoder.policy.heads.weight"], start["encoder.policy.heads.weight"])
    assert_same_training(one_batch, four)
    assert_same_training(one_batch, two[0])
    assert_ranks_agree(two)


ENGINES = {
    "legacy_ddp": (["--ddp-backend", "legacy_ddp"], None),
    "pytorch_ddp": (["--ddp-backend", "pytorch_ddp", "--find-unused-parameters"], stand_ins.data_parallel_on_cpu),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_that_skip_different_sublayers_neither_hang_nor_diverge(data, undecided, tmp_path, engine):
    options, prepare = ENGINES[engine]
    command = [*training(data, undecided, updates=8), "--batch-size", 1]
    (one,) = train_together(1, [*command, "--update-freq", 2], tmp_path / "one")
    two = train_together(2, [*command, *options], tmp_path / "two", prepare=prepare)
    rates = skip_rates((tmp_path / "two" / "log.0").read_text())
    assert sum(1 for site, rate in rates if 0 < rate < 1 and "decoder" in site) >= 4, (
        "one example a worker: skips differ"
    )
    assert_ranks_agree(two)
    assert_same_training(one, two[0])


def skip_rates(log):
    """(site, share of skipped sub-layers) of every logged update."""
    return [(site, float(rate)) for site, rate in re.findall(r'"sd_skip_(\w+)": "([\d.]+)"', log)]


def test_a_worker_without_a_batch_of_its_own_adds_nothing(data, undecided, tmp_path):
    """Three batches an epoch for two workers: fairseq gives one of them a stand-in to keep it in step."""
    command = [*training(data, undecided, updates=8), "--train-subset", "valid", "--batch-size", 3]
    (one,) = train_together(1, [*command, "--update-freq", 2], tmp_path / "one")
    two = train_together(2, [*command, "--ddp-backend", "legacy_ddp"], tmp_path / "two")
    assert_ranks_agree(two)
    assert_same_training(one, two[0])


def test_torchs_engine_without_a_search_for_unused_parameters_is_refused(data, undecided, tmp_path):
    command = [*training(data, undecided, updates=2), "--batch-size", 1, "--ddp-backend", "pytorch_ddp"]
    ranks = train_together(2, command, tmp_path, check=False, prepare=stand_ins.data_parallel_on_cpu)
    assert any("sd_fairseq: error: --ddp-backend pytorch_ddp" in rank["output"] for rank in ranks)
    assert any("--find-unused-parameters" in rank["output"] for rank in ranks)
    assert all(rank["code"] != 0 for rank in ranks)


@pytest.mark.parametrize(
    "options",
    [
        ["--ddp-backend", "fully_sharded"],
        ["--ddp-backend", "slowmo"],
        ["--use-bmuf"],
        ["--distributed-world-size", 2],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_engines_that_would_not_train_what_they_say_are_refused_at_build_time(data, undecided, tmp_path, options):
    command = [*training(data, undecided, updates=2), "--cpu", "--batch-size", 2, "--save-dir", tmp_path, *options]
    process = start("train", command, tmp_path / "log")
    (output,) = fail_or_finish([process], [tmp_path / "log"])
    assert process.exitcode == 1
    last = output.splitlines()[-1]
    assert last.startswith("sd_fairseq: error: ") and " ".join(map(str, options)) in last and "Traceback" not in output


def test_figures_of_a_batch_that_does_not_count_have_the_same_keys():
    """Workers add their figures up in one all-reduce; one whose loss overflowed must not send fewer."""
    from training import build_samples, build_training

    training = build_training()
    (sample,) = build_samples()
    training.task.uses_loss_scaling = True
    training.criterion.train()
    training.model.train()
    counted = training.criterion(training.model, sample)[2]
    with torch.no_grad():
        training.model.decoder.output_projection.weight.fill_(float("inf"))
    nothing = training.criterion(training.model, sample)[2]
    assert list(nothing) == list(counted)
    assert [torch.is_tensor(value) for value in nothing.values()] == [torch.is_tensor(v) for v in counted.values()]
    assert all(float(value) == 0 for key, value in nothing.items() if key.startswith("sd_"))
    assert len(training.criterion.pending) == 1


def generate(data, checkpoint, folder, shard=0, shards=1):
    """Generates one shard; returns the files of texts and trace."""
    texts, trace = folder / f"{shard}of{shards}.txt", folder / f"{shard}of{shards}.jsonl"
    options = ["--path", checkpoint, "--beam", 2, "--max-len-b", 12, "--max-tokens", 60, "--cpu", "--sd-trace", trace]
    options += ["--prefix-size", 2]  # of the reference, so that the scores of an untrained model are above 0
    options += ["--distributed-world-size", shards, "--distributed-rank", shard] if shards > 1 else []
    run("generate", [data, *TASK, *options], texts)
    return str(texts), str(trace)


def test_shards_give_the_scores_and_the_report_of_one_process(data, undecided, tmp_path):
    whole = generate(data, undecided, tmp_path)
    parts = [generate(data, undecided, tmp_path, shard, shards=2) for shard in range(2)]
    merged = [",".join(files) for files in zip(*parts)]
    reports = []
    for name, files in (("one", whole), ("two", merged)):
        command = ["--dense", *whole, "--switchable", *files, "--output-dir", str(tmp_path / name)]
        assert report.main(command) == 0
        reports.append(json.loads((tmp_path / name / "report.json").read_text()))
        for system in ("dense", "switchable"):
            assert reports[-1][system].pop("seconds") > 0
    assert reports[0] == reports[1]
    assert reports[0]["switchable"]["distinct_paths"] > 1 and reports[0]["switchable"]["rouge1"] > 1
    words = [set((tmp_path / f"{shard}of2.txt").read_text().splitlines()) for shard in range(2)]
    texts = [{line for line in lines if re.match(r"[STHDP]-\d", line)} for lines in words]
    assert all(texts) and set.union(*texts) == {
        line for line in (tmp_path / "0of1.txt").read_text().splitlines() if re.match(r"[STHDP]-\d", line)
    }


def test_the_option_that_fairseq_generate_ignores_is_refused_with_the_one_that_works(data, undecided, tmp_path):
    command = [data, *TASK, "--path", undecided, "--cpu", "--num-shards", 2, "--shard-id", 1]
    process = start("generate", command, tmp_path / "log")
    (output,) = fail_or_finish([process], [tmp_path / "log"])
    assert process.exitcode == 1 and "--distributed-world-size 2 --distributed-rank" in output.splitlines()[-1]
