"""The same random BART in Hugging Face transformers and CTranslate2, each in a worker of its own.

The modules of the others are not imported here: a user of one library has not loaded the rest. fairseq installs
torchaudio, whose CUDA build keeps transformers from being imported beside the CPU build of torch: ``make bench`` takes
it out of its own environment. Nothing in BART needs it.
"""

import os
from typing import Any, Dict, List, Optional

SHORT = 4  # target tokens of the untimed run before each timed one
SPECIAL = {"<s>": 0, "<blank>": 1, "<pad>": 1, "</s>": 2, "<unk>": 3}  # CTranslate2 renames the padding
WORDS = 4  # index of the first word, w0


class Transformers:
    """Hugging Face transformers.

    Args:
        request: ``threads``, ``precision`` fp32, bf16 or fp16, ``weights`` = fairseq's checkpoint, ``device``.
    """

    def __init__(self, request: Dict[str, Any]):
        import torch
        from transformers import BartForConditionalGeneration

        torch.set_num_threads(request["threads"])
        checkpoint = torch.load(request["weights"], mmap=True, map_location="cpu", weights_only=False)
        kind = request["precision"]
        self.model = BartForConditionalGeneration(bart_config(checkpoint["args"], checkpoint["model"]))
        self.model.load_state_dict(to_transformers(checkpoint["model"]), strict=True)
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        self.model = self.model.to(dtypes[kind]).eval()
        self.facts = {"checksum": transformers_checksum(self.model, checkpoint["model"]), "kind": kind}
        self.device = request["device"]
        self.model.to(self.device)

    def prepare(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """Takes a batch: ``tokens`` [B, S], ``target`` tokens to generate, ``beam``."""
        import torch

        self.batch, self.tokens = batch, torch.tensor(batch["tokens"], device=self.device)
        self.mask = torch.ones_like(self.tokens)
        return {}

    def warm_up(self) -> None:
        """A short run."""
        self._generate(SHORT)

    def run(self) -> Any:
        """Generates."""
        import accelerator

        found = self._generate(self.batch["target"])
        accelerator.synchronize()
        return found

    def peak_memory(self) -> Optional[float]:
        """The accelerator's peak memory in GB, where the model is on one."""
        import accelerator

        return accelerator.peak_memory(self.device)

    def _generate(self, target: int) -> Any:
        return self.model.generate(
            self.tokens,
            attention_mask=self.mask,
            num_beams=self.batch["beam"],
            min_new_tokens=target - 1,  # the end of sentence is the last one, as fairseq counts
            max_new_tokens=target,
            forced_eos_token_id=2,
            no_repeat_ngram_size=3,
            length_penalty=2.0,
        )

    def result(self, found: Any) -> List[List[int]]:
        """The best hypothesis of every sentence, without its start and its end."""
        expect_length(found.size(1) - 1, self.batch["target"])
        return [one[1:-1] for one in found.tolist()]


def bart_config(args: Any, weights: Dict[str, Any]) -> Any:
    """Translates fairseq's options into transformers' configuration."""
    from transformers import BartConfig

    return BartConfig(
        vocab_size=weights["encoder.embed_tokens.weight"].size(0),
        d_model=args.encoder_embed_dim,
        encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers,
        encoder_attention_heads=args.encoder_attention_heads,
        decoder_attention_heads=args.decoder_attention_heads,
        encoder_ffn_dim=args.encoder_ffn_embed_dim,
        decoder_ffn_dim=args.decoder_ffn_embed_dim,
        max_position_embeddings=args.max_source_positions,
        forced_bos_token_id=None,
    )


def transformers_name(name: str) -> str:
    """Returns transformers' name of fairseq's weight."""
    return "lm_head.weight" if name == "decoder.output_projection.weight" else "model." + name


def to_transformers(values: Dict[str, Any]) -> Dict[str, Any]:
    """Renames fairseq's weights."""
    import torch
    import weights

    renamed = {transformers_name(name): values[name] for name in weights.names(values)}
    embeddings = values["encoder.embed_tokens.weight"]
    return {**renamed, "model.shared.weight": embeddings, "final_logits_bias": torch.zeros(1, embeddings.size(0))}


def transformers_checksum(model: Any, values: Dict[str, Any]) -> str:
    """Hashes what the model holds, read back from it, under the names of fairseq's weights."""
    import weights

    held = model.state_dict()
    dtype = held["model.shared.weight"].dtype
    return weights.checksum({name: held[transformers_name(name)] for name in weights.names(values)}, dtype)


class Conversion:
    """Converts fairseq's checkpoint for CTranslate2; takes no turns. CTranslate2's users do that once, beforehand.

    Args:
        request: ``weights`` = the checkpoint, ``precision`` fp32 or int8, ``folder`` to write.
    """

    def __init__(self, request: Dict[str, Any]):
        import ctranslate2
        import torch
        import weights

        import sd_fairseq.plugin  # noqa: F401  # lets torch read fairseq's checkpoints with its protection on

        converter = ctranslate2.converters.FairseqConverter(
            request["weights"], os.path.dirname(request["weights"]), source_lang="source", target_lang="target"
        )
        converter.convert(request["folder"], quantization=COMPUTE_TYPES[request["precision"]], force=True)
        self.facts = {"checksum": weights.checksum(weights.read(request["weights"]), torch.float32), "kind": "fp32"}


COMPUTE_TYPES = {"fp32": "float32", "int8": "int8"}


class CTranslate2:
    """CTranslate2, converted from fairseq's checkpoint of the same weights.

    Args:
        request: ``threads``, ``precision`` fp32 or int8, ``folder`` of the converted model.
    """

    def __init__(self, request: Dict[str, Any]):
        import ctranslate2

        self.translator = ctranslate2.Translator(
            request["folder"],
            compute_type=COMPUTE_TYPES[request["precision"]],
            intra_threads=request["threads"],
            inter_threads=1,
        )
        self.facts: Dict[str, Any] = {}

    def prepare(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """Takes a batch: ``tokens`` [B, S], ``target`` tokens to generate, ``beam``."""
        self.batch = batch
        self.words = [[f"w{token - WORDS}" for token in one[:-1]] for one in batch["tokens"]]  # it adds the end itself
        return {}

    def warm_up(self) -> None:
        """A short run."""
        self._translate(SHORT)

    def run(self) -> Any:
        """Generates."""
        return self._translate(self.batch["target"])

    def _translate(self, target: int) -> Any:
        return self.translator.translate_batch(
            self.words,
            beam_size=self.batch["beam"],
            min_decoding_length=target,
            max_decoding_length=target,
            no_repeat_ngram_size=3,
            length_penalty=2.0,
            max_input_length=0,
        )

    def result(self, found: Any) -> List[List[int]]:
        """The best hypothesis of every sentence; it has a word where fairseq's has its end, which is left out."""
        hypotheses = [one.hypotheses[0] for one in found]
        for words in hypotheses:
            expect_length(len(words), self.batch["target"])
        return [
            [SPECIAL[word] if word in SPECIAL else int(word[1:]) + WORDS for word in one[:-1]] for one in hypotheses
        ]


def expect_length(found: int, wanted: int) -> None:
    """Raises when not as many tokens were generated as were to be: less work would be less time."""
    if found != wanted:
        raise ValueError(f"{found} tokens were generated, not {wanted}")


BUILDERS = {"transformers": Transformers, "ctranslate2": CTranslate2, "conversion": Conversion}
