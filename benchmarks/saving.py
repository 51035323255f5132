#!/usr/bin/env python3
"""Does skipping pay in seconds? Time saved against FLOPs or weights saved, by stack; mixed batches; the policy's cost.

Everything is measured in turns with the fast generator's own code, dense against decisions of given rates.

    python benchmarks/saving.py --precision bf16
    python benchmarks/saving.py --sweep              skip rates 0..90 %, for the plot of time against FLOPs
"""

import itertools
import statistics
from dataclasses import replace
from typing import Any, Callable, Dict, List

import measure
import torch

from sd_fairseq.cost.path_flops import Lengths, path_flops, relative_flops
from sd_fairseq.cost.sublayer_flops import ffn_flops, self_attention_flops
from sd_fairseq.decision.decisions import Decisions
from sd_fairseq.decision.given_policies import GivenPolicy
from sd_fairseq.decision.token_strategies import kept_token_mask
from sd_fairseq.plugin.generation.by_path import Pools, select
from sd_fairseq.plugin.generation.fast_encoder import encode, read_first
from sd_fairseq.plugin.generation.fast_model import PRECISIONS
from sd_fairseq.plugin.generation.fast_weights import FastWeights
from sd_fairseq.plugin.generation.native_search import start_search
from sd_fairseq.plugin.models.switchable_encoder import PathRequest

NAMES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
RATES = {"paper-rates": measure.PAPER_RATES, "half": {"attention": 0.5, "ffn": 0.5, "token": 0.5}}
DENSE = {"attention": 0.0, "ffn": 0.0, "token": 0.0}
STEPS = 32


class Bench:
    """A model with its packed weights and one batch.

    Args:
        args: the command line.
        batch: sentences.
    """

    def __init__(self, args: Any, batch: int):
        self.args, self.batch = args, batch
        self.dictionary = measure.build_dictionary()
        self.model = measure.build_model("switchable_bart_base", self.dictionary, args.size)
        self.space, self.shape = self.model.space, self.model.shape
        self.use(batch)
        with torch.no_grad():
            self.weights = FastWeights(self.model, PRECISIONS[NAMES[args.precision]])

    def use(self, batch: int) -> None:
        """Takes a batch of another size."""
        self.batch = batch
        self.net_input = measure.random_sources(batch, self.args.source_length, self.dictionary)

    def decisions(self, rates: Dict[str, float], seed: Any = None) -> Decisions:
        """Decisions for the batch."""
        return measure.decisions_at(self.space, self.batch, seed=seed, **rates)

    @torch.no_grad()
    def encode(self, decisions: Decisions) -> Any:
        """The encoder along given decisions."""
        return encode(self.model, self.weights, {**self.net_input, "path": PathRequest(decisions=decisions)})

    @torch.no_grad()
    def decode(self, source: Any) -> None:
        """``STEPS`` steps of a beam search's decoder that always keeps its hypotheses apart."""
        beam = self.args.beam
        search = start_search(self.model, self.weights, source, beam)
        tokens = torch.full((self.batch * beam, STEPS + 1), 5)
        order = torch.arange(self.batch * beam)
        for step in range(STEPS):
            search.step(tokens[:, : step + 1])
            search.reorder(order)

    def generate(self, decisions: Decisions) -> None:
        """Encoder and decoder."""
        self.decode(self.encode(decisions))

    def step(self, part: Dict[str, Any]) -> List[None]:
        """Generates a batch of fairseq's form along the deployed path, or the one that is asked for."""
        self.batch = part["net_input"]["src_tokens"].size(0)
        with torch.no_grad():
            self.decode(encode(self.model, self.weights, part["net_input"]))
        return [None] * self.batch

    def encoder_flops(self, decisions: Decisions) -> float:
        """FLOPs of the encoder's layers."""
        lengths = self.net_input["src_lengths"].double()  # [B]
        mask = self.net_input["src_tokens"].eq(1)
        kept = kept_token_mask(mask, decisions.token_choice, self.space.token_strategies).sum(1).double()
        attention = self_attention_flops(kept, self.shape.encoder_dim)
        ffn = ffn_flops(kept, self.shape.encoder_dim, self.shape.encoder_ffn_dim)
        first = self_attention_flops(lengths, self.shape.encoder_dim)
        first = first + ffn_flops(lengths, self.shape.encoder_dim, self.shape.encoder_ffn_dim)
        upper = attention * decisions.encoder_attention[:, 1:].sum(1) + ffn * decisions.encoder_ffn[:, 1:].sum(1)
        return float((first + upper).sum())

    def decoder_weights(self, decisions: Decisions) -> float:
        """Weights that a decoding step of the (uniform) decisions reads, output projection included."""
        dim, ffn_dim = self.shape.decoder_dim, self.shape.decoder_ffn_dim
        attention, ffn = decisions.decoder_attention[0].sum(), decisions.decoder_ffn[0].sum()
        cross = decisions.decoder_cross_attention[0].sum()
        sublayers = 4 * dim * dim * attention + 2 * dim * dim * cross + 2 * dim * ffn_dim * ffn
        return float(sublayers + dim * self.shape.vocabulary)

    def total_flops(self, decisions: Decisions) -> float:
        """FLOPs of the whole generation, without the policy: the decisions are given."""
        shape = replace(self.shape, policy_networks=0)
        lengths = Lengths(self.net_input["src_lengths"], torch.full((self.batch,), STEPS), self.args.beam)
        return float(path_flops("generation", shape, self.space, decisions, lengths).sum())

    def decoder_flops(self, decisions: Decisions) -> float:
        """FLOPs of the decoder: keys and values of cross-attention, and the output projection, included."""
        return self.total_flops(decisions) - self.encoder_flops(decisions)

    def relative_flops(self, decisions: Decisions) -> float:
        """FLOPs of the whole generation relative to the dense path."""
        lengths = Lengths(self.net_input["src_lengths"], torch.full((self.batch,), STEPS), self.args.beam)
        return float(relative_flops("generation", self.shape, self.space, decisions, lengths).mean())


def encoder_rows(bench: Bench) -> List[Dict[str, Any]]:
    """Time saved for every FLOP saved in the encoder."""
    dense = bench.decisions(DENSE)
    candidates: Dict[str, Callable[[], Any]] = {"dense": lambda: bench.encode(dense)}
    chosen = {name: bench.decisions(rates) for name, rates in RATES.items()}
    for name, decisions in chosen.items():
        candidates[name] = lambda decisions=decisions: bench.encode(decisions)
    seconds, rows = measure.take_turns(candidates, 2 * bench.args.rounds), []
    for name, decisions in chosen.items():
        flops = bench.encoder_flops(decisions) / bench.encoder_flops(dense)
        row = measure.row("encoder-saving", seconds[name], "ours dense", seconds["dense"], rates=name)
        row.update(
            flops_ratio=round(flops, 4), time_saved_per_flops_saved=round((1 - 1 / row["ratio"]) / (1 - flops), 4)
        )
        rows.append(row)
    return rows


def decoder_rows(bench: Bench) -> List[Dict[str, Any]]:
    """Time of a decoding step against the weights it reads."""
    sources, rows = {}, []
    for name, rates in {"dense": DENSE, **RATES}.items():
        decisions = bench.decisions({**rates, "token": 0.0})
        sources[name] = bench.encode(decisions), bench.decoder_weights(decisions)
    candidates = {name: (lambda source=source: bench.decode(source)) for name, (source, _) in sources.items()}
    seconds = measure.take_turns(candidates, 2 * bench.args.rounds)
    for name in RATES:
        kept = sources[name][1] / sources["dense"][1]
        row = measure.row("decoder-saving", seconds[name], "ours dense", seconds["dense"], rates=name)
        row.update(weights_ratio=round(kept, 4), time_per_kept_weights=round(1 / row["ratio"] / kept, 4))
        rows.append(row)
    return rows


def mixed_rows(bench: Bench, batch: int = 16) -> List[Dict[str, Any]]:
    """A batch of mixed decisions against one of uniform decisions of equal cost."""
    before, rows = bench.batch, []
    bench.use(batch)
    for name, rates in RATES.items():
        uniform, mixed = bench.decisions(rates), bench.decisions(rates, seed=1)
        runs = {"mixed": lambda: bench.generate(mixed), "uniform": lambda: bench.generate(uniform)}  # noqa: B023
        seconds = measure.take_turns(runs, bench.args.rounds)
        flops = {"flops_ratio": round(bench.relative_flops(mixed) / bench.relative_flops(uniform), 4)}
        rows.append(measure.row("mixed-batch16", seconds["mixed"], "uniform", seconds["uniform"], rates=name, **flops))
    bench.use(before)
    return rows


class PathOfDocument(GivenPolicy):
    """Gives a document one of some paths, by its tokens.

    Args:
        paths: decisions of as many rows.
    """

    def __init__(self, paths: Decisions):
        super().__init__()
        self.paths = paths

    def decide(self, src_tokens: torch.Tensor, padding_mask: torch.Tensor) -> Decisions:
        """See :class:`GivenPolicy`."""
        return self.paths.index_select(src_tokens.sum(dim=1) % len(self.paths))


def pool_rows(bench: Bench, batch: int = 16, paths: int = 8) -> List[Dict[str, Any]]:
    """A stream of documents of some paths, path by path, against batches as they come and against one path for all."""
    before, policy, batches = bench.batch, bench.model.encoder.policy, bench.args.batches
    bench.use(batch * batches)
    sample = {"net_input": bench.net_input}
    policies = {
        "some": PathOfDocument(measure.decisions_at(bench.space, paths, seed=1, **RATES["half"])),
        "one": PathOfDocument(measure.decisions_at(bench.space, 1, **RATES["half"])),
    }

    def run(pool: int, kind: str) -> None:
        bench.model.encoder.policy = policies[kind]
        for rows in torch.arange(batch * batches).split(batch * pool):
            Pools(pool, batch, None).generate(bench.step, decide, [bench.model], select(sample, rows, 1))

    def decide(net_input: Dict[str, Any]) -> Any:
        with torch.no_grad():
            return read_first(bench.model, bench.weights, net_input)

    runs = {
        "by path": lambda: run(batches, "some"),
        "as they come": lambda: run(1, "some"),
        "one path": lambda: run(1, "one"),
    }
    seconds, rows = measure.take_turns(runs, bench.args.rounds), []
    for peer in ("as they come", "one path"):
        more = {"rates": "half", "paths": paths, "batches": batches}
        rows.append(measure.row("pool-by-path", seconds["by path"], peer, seconds[peer], **more))
    bench.use(before)
    bench.model.encoder.policy = policy
    return rows


@torch.no_grad()
def policy_rows(bench: Bench) -> List[Dict[str, Any]]:
    """Time of the policy itself in a generation that keeps everything."""
    dense, policy = bench.decisions(DENSE), bench.model.encoder.policy
    state = torch.randn(bench.batch, bench.shape.encoder_dim)
    runs = {
        "dense": lambda: bench.generate(dense),
        "with policy": lambda: bench.decode(encode(bench.model, bench.weights, dict(bench.net_input))),
        "policy": lambda: policy.stage_logits(1, state),
    }
    seconds = measure.take_turns(runs, bench.args.rounds)
    row = measure.row("policy-overhead", seconds["with policy"], "no policy", seconds["dense"])
    alone = statistics.median(seconds["policy"])
    row.update(policy_s=round(alone, 6), policy_share=round(alone / statistics.median(seconds["dense"]), 6))
    return [row]


def sweep_rows(bench: Bench) -> List[Dict[str, Any]]:
    """The encoder, the decoder and the whole generation at skip rates from 0 to 90 %."""
    chosen = {rate: bench.decisions({"attention": rate, "ffn": rate, "token": min(rate, 0.5)}) for rate in SWEEP}
    sources = {rate: bench.encode(decisions) for rate, decisions in chosen.items()}
    runs: Dict[str, Callable[[], Any]] = {}
    for rate, decisions in chosen.items():
        runs[f"encoder {rate}"] = lambda decisions=decisions: bench.encode(decisions)
        runs[f"decoder {rate}"] = lambda source=sources[rate]: bench.decode(source)
        runs[f"generation {rate}"] = lambda decisions=decisions: bench.generate(decisions)
    seconds, rows = measure.take_turns(runs, bench.args.rounds), []
    parts = {"encoder": bench.encoder_flops, "decoder": bench.decoder_flops, "generation": bench.total_flops}
    for (part, flops), rate in itertools.product(parts.items(), SWEEP):
        more = {"part": part, "skip_rate": rate, "flops_ratio": round(flops(chosen[rate]) / flops(chosen[0.0]), 4)}
        ours, dense = seconds[f"{part} {rate}"], seconds[f"{part} 0.0"]
        rows.append(measure.row("skip-rate-sweep", ours, "ours dense", dense, **more))
    return rows


SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def main() -> None:
    """Measures and writes ``saving.json``."""
    parser = measure.arguments(__doc__.splitlines()[0], "saving")
    parser.add_argument("--precision", choices=NAMES, default="fp32")
    parser.add_argument("--source-length", type=int, default=800)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--mixed-source-length", type=int, default=128, help="of the batch of 16")
    parser.add_argument("--batches", type=int, default=8, help="of 16 in the stream that is generated path by path")
    parser.add_argument("--sweep", action="store_true", help="measure the sweep of skip rates only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args, 1)
    common = {"precision": args.precision, "source": args.source_length, "beam": args.beam, "steps": STEPS}
    parts = [sweep_rows] if args.sweep else [encoder_rows, decoder_rows, policy_rows, mixed_rows, pool_rows]
    rows: List[Dict[str, Any]] = []
    for part in parts:
        if part is mixed_rows:
            args.source_length = common["source"] = args.mixed_source_length
        rows += [{**row, **common} for row in part(bench)]
        measure.write(args.output, rows)


if __name__ == "__main__":
    main()
