"""Mixed traffic: four tasks as one stream, the rules of its controls, its scores, and all of it on a tiny T5."""

import gzip
import importlib
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from warm import python

pytest.importorskip("fairseq")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "mixed_traffic"
REFERENCE = ROOT / "tests" / "reference" / "t5" / "v1_1"
NAMES = ("tasks", "choose", "score", "rows", "mixed_table")
FAMILIES = ("recommended", "blind", "fitted", "static", "by-task", "by-length", "clustered", "fair", "random")
COMMON = ("recipe", "steps")  # of the trade-off grid


@pytest.fixture(scope="module")
def tools():
    """The scripts as modules, by name."""
    places = [str(FOLDER), str(ROOT / "examples" / "tradeoff")]
    sys.path[:0] = places
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        for place in places:
            sys.path.remove(place)
        for name in (*NAMES, *COMMON):  # their names are common ones
            sys.modules.pop(name, None)


def words(generator, low, high):
    return " ".join(f"w{generator.randint(3, 47)}" for _ in range(generator.randint(low, high)))


def squad(generator, name, contexts, questions):
    """A file of SQuAD 1.1: every answer is a word of its context."""
    paragraphs = []
    for number in range(contexts):
        context = words(generator, 8, 30)
        entries = []
        for one in range(questions):
            answer = generator.choice(context.split())
            place = {"text": answer, "answer_start": f" {context} ".index(f" {answer} ")}
            entries.append({"id": f"{name}{number}-{one}", "question": words(generator, 3, 5), "answers": [place]})
        paragraphs.append({"context": context, "qas": entries})
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The four tasks' folders; some texts of the held-out files stand in training, too."""
    folder, generator = tmp_path_factory.mktemp("tasks"), random.Random(1)
    for task in ("sst2", "debian", "scitldr", "squad"):
        (folder / task).mkdir()
    held_out = [words(generator, 5, 9) for _ in range(12)]
    for name, sentences in (("train", [words(generator, 5, 9) for _ in range(60)] + held_out[:4]), ("dev", held_out)):
        lines = ["sentence\tlabel", *(f"{one}\t{number % 2}" for number, one in enumerate(sentences))]
        (folder / "sst2" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for task, (keys, names) in {
        "debian": (("document", "summary"), ("train", "valid")),
        "scitldr": (("source", "target"), ("train", "dev")),
    }.items():
        held_out = [words(generator, 8, 30) for _ in range(12)]
        for name, documents in zip(names, ([words(generator, 8, 30) for _ in range(40)] + held_out[:4], held_out)):
            summaries = [[words(generator, 2, 5), words(generator, 2, 5)] for _ in documents]
            pairs = [dict(zip(keys, pair)) for pair in zip(documents, summaries)]
            with gzip.open(folder / task / f"{name}.jsonl.gz", "wt", encoding="utf-8") as lines:
                lines.writelines(json.dumps(pair) + "\n" for pair in pairs)
    known, unknown = squad(generator, "a", 20, 2), squad(generator, "b", 6, 2)
    known["data"] += unknown["data"][:1]
    for name, content in (("train", known), ("dev", unknown)):
        (folder / "squad" / f"{name}-v1.1.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("task", ["sst2", "debian", "scitldr", "squad"])
def test_no_text_stands_in_two_splits(tools, texts, task):
    splits = tools["tasks"].read_task(task, str(texts / task), 5)
    contents = {split: {one.content for one in examples} for split, examples in splits.items()}
    assert all(contents.values())
    for one, other in itertools.combinations(contents, 2):
        assert not contents[one] & contents[other], (one, other)
    assert len(splits["valid"]) <= 6
    again = tools["tasks"].read_task(task, str(texts / task), 5)
    assert again == splits


def test_of_a_question_the_answer_is_in_its_words(tools, texts):
    for examples in tools["tasks"].read_task("squad", str(texts / "squad"), 5).values():
        for one in examples:
            first, last = one.span
            assert one.references[0] in " ".join(one.text.split()[first:last])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_cut_keeps_instruction_and_answer_and_as_much_as_fits(tools, seed):
    tasks, generator = tools["tasks"], random.Random(seed)
    text = [f"t{number}" for number in range(generator.randint(5, 40))]
    first = generator.randrange(len(text))
    last = min(len(text), first + generator.randint(1, 3))
    example = tasks.Example("squad", "k", "Ask this: ", " ".join(text), ("a",), (first, last))
    limit = generator.randint(2 + last - first, 50)

    def fits(source):
        return len(source.split()) <= limit

    found = tasks.cut(example, fits, around=True)
    kept = found.text.split()
    assert found.head == example.head and fits(found.head + found.text)
    assert set(text[first:last]) <= set(kept)
    assert kept == text[text.index(kept[0]) :][: len(kept)]
    assert len(kept) == min(len(text), limit - 2)
    front = tasks.cut(example, fits, around=False).text.split()
    assert front == text[: len(kept)]


def test_an_instruction_that_leaves_no_room_is_one_line(tools):
    tasks = tools["tasks"]
    example = tasks.Example("sst2", "k", "Is this good? ", "yes it is", ("a",))
    with pytest.raises(tasks.InputError, match="sst2 k: the instruction"):
        tasks.cut(example, lambda source: len(source.split()) <= 3, around=True)


@pytest.mark.parametrize("seed", range(20))
def test_a_rule_takes_the_best_paths_that_its_budget_allows(tools, seed):
    choose, generator = tools["choose"], torch.Generator().manual_seed(seed)
    loss = torch.rand(5, 9, generator=generator, dtype=torch.float64)
    flops = 0.4 + 0.6 * torch.rand(5, 9, generator=generator, dtype=torch.float64)
    groups, budget = [0, 1, 2, 0, 1, 2, 0, 1, 2], 0.7

    def total(paths, values):
        return float(sum(values[paths[group], place] for place, group in enumerate(groups)) / len(groups))

    found = choose.choose_by_group(loss, flops, groups, budget)
    allowed = [paths for paths in itertools.product(range(5), repeat=3) if total(paths, flops) <= budget + choose.SLACK]
    assert allowed and total(found, flops) <= budget + choose.SLACK
    assert total(found, loss) == pytest.approx(min(total(paths, loss) for paths in allowed))


@pytest.mark.parametrize("kinds", [1, 3])
def test_kinds_of_requests_are_found_where_there_are_some(tools, kinds):
    choose, generator = tools["choose"], torch.Generator().manual_seed(kinds)
    truth = [number % kinds for number in range(90)]
    states = 5 * torch.eye(3)[truth].repeat(1, 3) + torch.randn(90, 9, generator=generator)
    loss = torch.rand(6, 90, generator=generator, dtype=torch.float64)
    for number, kind in enumerate(truth):
        loss[kind, number] -= 1.0  # each kind has a path that suits it
    flops = torch.full((6, 90), 0.7, dtype=torch.float64)
    found = choose.find_kinds(states, loss, flops, 0.7)
    assert len({pair for pair in zip(truth, found)}) == kinds == len(set(found))


@pytest.mark.parametrize("seed", range(20))
def test_where_no_task_pays_for_another_the_worst_rise_is_the_least_that_the_budget_allows(tools, seed):
    choose, generator = tools["choose"], torch.Generator().manual_seed(seed)
    loss, dense = torch.rand(6, 9, generator=generator, dtype=torch.float64) + 1.0, torch.ones(9, dtype=torch.float64)
    flops = 0.4 + 0.6 * torch.rand(6, 9, generator=generator, dtype=torch.float64)
    groups, budget = [0, 1, 2, 0, 1, 2, 0, 1, 2], 0.7

    def cost(paths):
        return float(sum(flops[paths[group], place] for place, group in enumerate(groups)) / len(groups))

    def worst(paths):
        return max(float((loss - dense)[paths[name]][name::3].mean()) for name in range(3))

    found, tolerance = choose.choose_for_each(loss, flops, dense, groups, budget)
    allowed = [paths for paths in itertools.product(range(6), repeat=3) if cost(paths) <= budget + choose.SLACK]
    assert cost(found) <= budget + choose.SLACK and worst(found) <= tolerance + 1e-12
    assert tolerance == pytest.approx(min(worst(paths) for paths in allowed))


def test_ranges_of_lengths_hold_as_many_examples_each(tools):
    choose, lengths = tools["choose"], random.Random(1).sample(range(1000), 40)
    edges = choose.find_edges(lengths)
    groups = choose.find_groups("length", ["t"] * 40, lengths, edges)
    assert [groups.count(number) for number in range(choose.RANGES)] == [10] * choose.RANGES
    order = sorted(zip(lengths, groups))
    assert [group for _, group in order] == sorted(groups)


def test_of_several_references_the_best_counts_and_labels_must_be_said_exactly(tools):
    score = tools["score"].score_answers
    assert score("label", ["positive", " Negative ", "positively"], [["positive"], ["negative"], ["positive"]]) == {
        "accuracy": [100.0, 100.0, 0.0]
    }
    assert score("answer", ["The cat"], [["a dog", "cat"]]) == {"exact": [100.0], "f1": [100.0]}
    one = score("summary", ["a b c d"], [["x y", "a b c d"]])
    assert all(values == [pytest.approx(100.0)] for values in one.values())
    alone = [score("summary", ["a b x"], [[text]])["rougeL"][0] for text in ("a b", "x y z")]
    assert score("summary", ["a b x"], [["a b", "x y z"]])["rougeL"] == [max(alone)]


def result(tools, row, seed, losses, flops):
    """A result of two tasks with the given losses."""
    tasks = {}
    for task, values in losses.items():
        tasks[task] = {"loss": sum(values) / len(values), "gflops_per_example": flops, "gflops_per_example_dense": 1.0}
        tasks[task][tools["score"].MAIN[tools["tasks"].KINDS[task]]] = 50.0
        tasks[task]["flops_corpus"] = flops
    shares = {"sst2": 0.75, "squad": 0.25, "xsum": 1.0}
    by_example = {
        task: {"loss": values, tools["score"].MAIN[tools["tasks"].KINDS[task]]: [50.0] * len(values)}
        for task, values in losses.items()
    }
    traffic = tools["score"].find_traffic(tasks, shares)
    return {
        "row": row,
        "seed": seed,
        "tasks": tasks,
        "by_example": by_example,
        "traffic": traffic,
        "distinct_paths": 1,
    }


def test_the_traffics_loss_counts_tasks_by_their_shares_not_by_their_examples(tools):
    one = result(tools, "a", 1, {"sst2": [1.0, 2.0], "squad": [5.0] * 10}, 0.5)
    other = result(tools, "b", 1, {"sst2": [0.0, 1.0], "squad": [4.5] * 10}, 0.5)
    assert one["traffic"]["loss"] == pytest.approx(0.75 * 1.5 + 0.25 * 5.0)
    found = tools["score"].compare(one, other)
    assert found["traffic"]["loss"]["difference"] == pytest.approx(0.75 * 1.0 + 0.25 * 0.5)
    assert found["sst2"]["loss"]["difference"] == pytest.approx(1.0)
    back = tools["score"].compare(other, one)
    assert back["traffic"]["loss"]["difference"] == pytest.approx(-found["traffic"]["loss"]["difference"])


def test_rows_are_compared_with_controls_of_their_flops_and_of_their_seeds(tools, tmp_path):
    losses = {"sst2": [1.0, 2.0], "squad": [3.0, 4.0]}
    for row, seed, add in (
        ("static-0.7", 1, 0.5),
        ("fitted-0.7", 1, 0.0),
        ("fitted-0.7", 2, 9.0),
        ("static-0.6", 1, 7.0),
    ):
        more = {task: [value + add for value in values] for task, values in losses.items()}
        (tmp_path / f"{row}-{seed}.json").write_text(json.dumps(result(tools, row, seed, more, 0.7)))
    (tmp_path / "random-0.7-1.json").write_text(json.dumps({"row": "random-0.7", "seed": 1, "failed": "why"}))
    runs = tools["mixed_table"].read_runs(str(tmp_path))
    assert list(tools["mixed_table"].pairs_of(runs)) == [("fitted-0.7", "static-0.7")]
    _, line = tools["mixed_table"].differences(runs)
    assert line[0] == "`fitted-0.7` - `static-0.7`" and line[1].startswith("-0.500 [")


@pytest.mark.parametrize(
    "question, kind",
    [
        ("Who is it?", "who"),
        ("To whom did he write?", "who"),
        ("In WHICH year was that?", "which"),
        ("How many are there, and what for?", "how many"),
        ("What's the sum? How?", "what"),
        ("Somewhat unclear", "other"),
        ("The whole showhow", "other"),
        ("", "other"),
    ],
)
def test_a_question_is_of_the_kind_of_its_first_question_word(tools, question, kind):
    assert tools["tasks"].question_kind(question) == kind


def test_kinds_of_questions_are_compared_by_their_own_questions(tools):
    runs, count = {}, tools["mixed_table"].LEAST_QUESTIONS
    places = {"who": list(range(0, 2 * count, 2)), "what": list(range(1, 2 * count, 2)), "why": [2 * count]}
    for row, who, what in (("fitted-0.7", 1.0, 2.0), ("static-0.7", 1.5, 2.0)):
        losses = [who if place % 2 == 0 else what for place in range(2 * count)] + [9.0]
        one = result(tools, row, 1, {"squad": losses}, 0.7)
        one["groups"] = {"squad": {kind: {"places": found, "flops_corpus": 0.7} for kind, found in places.items()}}
        runs[row] = {1: one}
    lines = list(tools["mixed_table"].inside(runs))[1:]
    assert [line[1] for line in lines] == [f"what ({count})", f"who ({count})"]
    assert lines[0][3].startswith("+0.000") and lines[1][3].startswith("-0.500")


def test_an_unseen_task_is_compared_with_the_static_path_of_its_flops(tools):
    runs = {}
    for row, loss in (("dense", 1.0), ("fitted-0.7", 1.25), ("static-0.7", 1.75)):
        one = result(tools, row, 1, {"xsum": [loss] * 5}, 0.7)
        runs[row] = {1: one}
    lines = {line[0]: line[-2:] for line in list(tools["mixed_table"].unseen(runs))[1:]}
    assert lines["`fitted-0.7` (1)"][0].startswith("-0.500 [")
    assert lines["`dense` (1)"] == lines["`static-0.7` (1)"] == ["", ""]


def test_what_a_rule_is_worth_is_measured_on_examples_that_did_not_choose(tools):
    choose, generator = tools["choose"], torch.Generator().manual_seed(5)
    loss = torch.rand(40, 60, generator=generator, dtype=torch.float64)  # nothing but noise
    flops = torch.full((40, 60), 0.7, dtype=torch.float64)
    groups = [number // 3 for number in range(60)]
    chosen = choose.cross_choose(loss, flops, groups, 0.7)
    found = float(loss.gather(0, chosen.unsqueeze(0)).mean())
    by_chance = float(loss.view(40, 20, 3).mean(2).min(0).values.mean())  # chosen by the very losses
    assert by_chance < 0.25 and found == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("name", ["static", "static-7", "static-1.0", "dense-0.7", "oracle-0.7"])
def test_a_row_that_is_none_is_named(tools, name):
    with pytest.raises(ValueError, match=f"row '{name}' is none of"):
        tools["rows"].parse_row(name)


def test_every_rows_options_are_real_and_the_same_but_for_what_it_is(tools):
    from fairseq import options

    from sd_fairseq.plugin.criterions.options import check_options, multiplier_rule
    from sd_fairseq.plugin.guards.preflight import typed_options
    from sd_fairseq.plugin.guards.presets import Run, check_effects, fill_criterion

    rows = tools["rows"]
    settings = rows.Settings(
        *(400, 200, 1056, 1, 4, 1, "switchable_t5", (512, 128), (), (), ("--cpu",), ("--cpu",), (16, 200), 0.55)
    )
    given = {"path": "encoder_attention==1111111", "keep": "0.8", "policy": "p.pt"}
    shared = {}
    for name in (*rows.PLAIN[1:], *(f"{family}-0.7" for family in rows.BUDGETED)):
        command = rows.train_command(rows.parse_row(name), 1, settings, given)[3:]
        command = [str(ROOT / "sd_fairseq") if word == "sd_fairseq" else word for word in command]
        args = options.parse_args_and_arch(options.get_training_parser(), command)
        check_effects(typed_options(command))
        fill_criterion(args, Run.of(args))
        check_options(args)
        multiplier_rule(args)
        found = {key: value for key, value in vars(args).items() if not key.startswith("sd_")}
        found.pop("save_dir")
        assert (found.pop("finetune_from_model") == "p.pt") == (
            name.split("-0")[0] in ("fitted", "by-task", "by-length", "clustered", "fair")
        )
        for key, value in found.items():
            assert shared.setdefault(key, value) == value, f"{name} differs from the other rows in {key}"


def call(*command):
    """Runs a script; returns the finished process."""
    words = [python(), *map(str, command)]
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_starts_from_anywhere_and_says_what_it_takes(name, tmp_path):
    words = [python(), str(FOLDER / name), "--help"]
    done = subprocess.run(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: " + name)


@pytest.fixture(scope="module")
def prepared(texts, tmp_path_factory):
    """The reference model imported, and the four tasks as one stream for it."""
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    from sd_fairseq.commands.import_weights import main as import_weights

    folder = tmp_path_factory.mktemp("mixed")
    assert import_weights([str(REFERENCE), str(folder / "t5")]) == 0
    tasks = [word for task in ("sst2", "debian", "scitldr", "squad") for word in (f"--{task}", texts / task)]
    options = ["--tokenizer", folder / "t5" / "tokenizer.json", "--dictionary", folder / "t5" / "dict.txt", *tasks]
    options += ["--weights", "sst2=32,debian=24,scitldr=8,squad=16", "--limit", "64", "--valid", "4"]
    generator = random.Random(2)
    pairs = [
        {"id": str(one), "document": words(generator, 8, 30), "summary": words(generator, 2, 5)} for one in range(9)
    ]
    (folder / "other.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    options += ["--unseen", folder / "other.jsonl", "--unseen-count", "6"]
    done = call(FOLDER / "prepare.py", folder / "data", *options)
    assert done.returncode == 0, done.stderr
    return folder, options


def test_what_is_prepared_is_not_made_again_or_otherwise(prepared):
    folder, options = prepared
    before = {path: path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()}
    assert call(FOLDER / "prepare.py", folder / "data", *options).returncode == 0
    done = call(FOLDER / "prepare.py", folder / "data", *options, "--seed", "2")
    assert done.returncode == 1 and "made with seed 1, now 2" in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    side = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = {task: sum(one["task"] == task for one in side) for task in ("sst2", "debian", "scitldr", "squad")}
    assert counts == {"sst2": 32, "debian": 24, "scitldr": 8, "squad": 16}


@pytest.mark.parametrize(
    "rows",
    [
        ("dense", "by-task-0.85"),
        pytest.param(("dense", *(f"{one}-0.85" for one in FAMILIES)), marks=pytest.mark.slow),
    ],
    ids=["two", "all"],
)
def test_one_command_makes_base_search_and_rows_and_remembers_them(prepared, tmp_path, tools, rows):
    folder, _ = prepared
    options = ["--prepared", folder / "data", "--model", folder / "t5" / "model.pt", "--out", tmp_path / "out"]
    options += ["--results", tmp_path / "results", "--seeds", "1", "--base-updates", "2", "--updates", "2"]
    options += ["--max-tokens", "256", "--base-update-freq", "1", "--search-examples", "2", "--table-examples", "40"]
    options += ["--lowest", "0.8"]
    done = call(FOLDER / "run.py", *options, "--rows", ",".join(rows))
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tools["mixed_table"].read_runs(str(tmp_path / "results"))
    assert set(runs) == set(rows)
    for row, seeds in runs.items():
        flops = seeds[1]["traffic"]["flops_corpus"]
        assert seeds[1]["examples"] == sum(len(one["loss"]) for one in seeds[1]["by_example"].values())
        if row == "dense":
            assert flops == pytest.approx(1.0)
        elif row.rpartition("-")[0] not in tools["rows"].LEARNED:  # those have not learned in two updates
            assert flops < 0.95
        if row.rpartition("-")[0] in ("static", "blind"):
            assert seeds[1]["distinct_paths"] == 1
        assert str(tmp_path) not in json.dumps(seeds[1])
    again = call(FOLDER / "run.py", *options, "--rows", ",".join(rows))
    assert again.returncode == 0 and again.stdout.count("finished before") == len(rows)
    other = call(FOLDER / "run.py", *options, "--rows", "by-task-0.85", "--updates", "3")
    assert other.returncode == 2 and "made with updates 2, now 3" in other.stderr
    unseen = [*options, "--results", tmp_path / "unseen", "--subset", "unseen", "--rows", "dense"]
    done = call(FOLDER / "run.py", *unseen)
    assert done.returncode == 0, done.stdout + done.stderr
    (only,) = tools["mixed_table"].read_runs(str(tmp_path / "unseen")).values()
    assert only[1]["examples"] == 6 and list(only[1]["tasks"]) == ["xsum"]
    assert call(FOLDER / "mixed_table.py", tmp_path / "unseen").returncode == 0
    printed = call(FOLDER / "mixed_table.py", tmp_path / "results")
    assert printed.returncode == 0 and "`by-task-0.85` - `dense`" in printed.stdout
    picture = call(
        FOLDER / "mixed_table.py", tmp_path / "results", "--row", "by-task-0.85", "--picture", tmp_path / "p.png"
    )
    assert picture.returncode == 0 and (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
