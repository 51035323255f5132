"""A pretrained T5 or LLaMA in the fast generator and in Hugging Face transformers, each in a worker of its own.

Both read one checkpoint, ``sd-import``'s. The number of tokens is forced: the end of sentence is the last one.
"""

from typing import Any, Callable, Dict, List

SHORT = 4  # tokens of the untimed run before each timed one
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def read_checkpoint(path: str) -> Any:
    """Reads the options and the weights of a checkpoint."""
    import torch

    checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=False)
    return checkpoint["args"], checkpoint["model"]


def options_of(args: Any) -> Dict[str, Any]:
    """Returns a checkpoint's options as a dictionary."""
    return dict(args) if isinstance(args, dict) else dict(vars(args))


class Candidate:
    """What both do with a batch of prompts, one prompt after the other.

    Args:
        request: ``threads``, ``precision`` fp32 or bf16, ``weights`` = the checkpoint.
    """

    batch: Dict[str, Any]

    def prepare(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """Takes ``prompts``, lists of ids without an end; ``target`` tokens to generate; ``beam``."""
        self.batch = batch
        return {}

    def warm_up(self) -> None:
        """A short run."""
        self.generate(self.batch["prompts"][0], SHORT)

    def run(self) -> List[List[int]]:
        """Generates for every prompt: the best hypotheses without their ends."""
        found = [self.generate(prompt, self.batch["target"]) for prompt in self.batch["prompts"]]
        if any(len(one) != self.batch["target"] - 1 for one in found):
            raise ValueError(f"{[len(one) + 1 for one in found]} tokens were generated, not {self.batch['target']}")
        return found

    def result(self, found: List[List[int]]) -> List[List[int]]:
        """What is compared."""
        return found

    def generate(self, prompt: List[int], target: int) -> List[int]:
        """Generates ``target`` tokens; returns all but the last."""
        raise NotImplementedError


class Ours(Candidate):
    """The fast generator."""

    def __init__(self, request: Dict[str, Any]):
        import os

        import torch

        from sd_fairseq.plugin.generation.fast_model import FastModel

        torch.set_num_threads(request["threads"])
        self.model = load_ours(os.path.dirname(request["weights"]))
        self.dictionary = self.model.decoder.dictionary
        self.ensemble = FastModel(self.model, DTYPES[request["precision"]])
        self.path: Any = None
        self.facts: Dict[str, Any] = {}

    def generate(self, prompt: List[int], target: int) -> List[int]:
        """See :class:`Candidate`."""
        import torch
        from fairseq.sequence_generator import SequenceGenerator

        beam, length = self.batch["beam"], target - 1
        generator = SequenceGenerator(self.ensemble, self.dictionary, beam, min_len=length, max_len_b=length)
        source = torch.tensor([[*prompt, self.dictionary.eos()]])
        net_input = {"src_tokens": source, "src_lengths": torch.tensor([source.size(1)])}
        if self.path is not None:
            net_input["path"] = self.path
        found = generator.generate([self.model], {"net_input": net_input})
        best: List[int] = found[0][0]["tokens"].tolist()[:-1]
        return best


def load_ours(folder: str) -> Any:
    """Builds the switchable model of a folder of ``sd-import``'s."""
    import os
    from types import SimpleNamespace

    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    import sd_fairseq.plugin  # noqa: F401  # registers the models
    from sd_fairseq.plugin.tasks.switchable_translation import SwitchableTranslationTask

    args, weights = read_checkpoint(os.path.join(folder, "model.pt"))
    args = SimpleNamespace(**options_of(args))
    args.sd_policy = "dense"
    ARCH_CONFIG_REGISTRY[args.arch](args)
    dictionary = SwitchableTranslationTask.load_dictionary(os.path.join(folder, "dict.txt"))
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=SimpleNamespace())
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)
    model.load_state_dict(weights, strict=False)
    return model.eval()


class Transformers(Candidate):
    """Hugging Face's ``generate``."""

    def __init__(self, request: Dict[str, Any]):
        import torch

        torch.set_num_threads(request["threads"])
        args, weights = read_checkpoint(request["weights"])
        options = options_of(args)
        self.is_t5 = "t5" in options["arch"]
        self.eos = 1 if self.is_t5 else request["eos"]
        build: Callable[..., Any] = t5_of if self.is_t5 else llama_of
        self.model = build(options, weights, self.eos).to(getattr(torch, DTYPES[request["precision"]])).eval()
        self.facts: Dict[str, Any] = {}

    def generate(self, prompt: List[int], target: int) -> List[int]:
        """See :class:`Candidate`."""
        import torch

        tokens = torch.tensor([[*prompt, self.eos] if self.is_t5 else prompt])
        found = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=self.batch["beam"],
            do_sample=False,
            min_new_tokens=target - 1,
            max_new_tokens=target,
            forced_eos_token_id=self.eos,
            pad_token_id=0 if self.is_t5 else self.eos,
            eos_token_id=self.eos,
        )[0]
        best: List[int] = found[1 if self.is_t5 else tokens.size(1) :].tolist()[:-1]
        return best


def t5_of(options: Dict[str, Any], weights: Dict[str, Any], eos: int) -> Any:
    """Builds Hugging Face's T5 with a checkpoint's weights."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from sd_fairseq.plugin.convert.weights.t5 import COPIES, our_names

    tied = options["share_decoder_input_output_embed"]
    config = T5Config(
        vocab_size=weights["encoder.embed_tokens.weight"].size(0),
        d_model=options["encoder_embed_dim"],
        d_kv=options["attention_head_dim"],
        d_ff=options["encoder_ffn_embed_dim"],
        num_layers=options["encoder_layers"],
        num_decoder_layers=options["decoder_layers"],
        num_heads=options["encoder_attention_heads"],
        feed_forward_proj=options["feed_forward"],
        tie_word_embeddings=tied,
        decoder_start_token_id=0,
    )
    config.tie_word_embeddings = config.scale_decoder_outputs = tied  # transformers 5 forgets both
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not (tied and name == "lm_head.weight"):
                value.copy_(weights["encoder.embed_tokens.weight" if name in COPIES else our_names(name)[0]])
    return model


def llama_of(options: Dict[str, Any], weights: Dict[str, Any], eos: int) -> Any:
    """Builds Hugging Face's LLaMA with a checkpoint's weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sd_fairseq.plugin.convert.weights.llama import our_name

    tied = options["share_decoder_input_output_embed"]
    config = LlamaConfig(
        vocab_size=weights["decoder.embed_tokens.weight"].size(0),
        hidden_size=options["decoder_embed_dim"],
        intermediate_size=options["decoder_ffn_embed_dim"],
        num_hidden_layers=options["decoder_layers"],
        num_attention_heads=options["decoder_attention_heads"],
        num_key_value_heads=options["key_heads"],
        head_dim=options["attention_head_dim"],
        rms_norm_eps=options["layer_norm_epsilon"],
        rope_theta=options["rotary_theta"],
        rope_parameters={"rope_type": "default", "rope_theta": options["rotary_theta"]},
        max_position_embeddings=options["max_source_positions"],
        tie_word_embeddings=tied,
        eos_token_id=eos,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not (tied and name == "lm_head.weight"):
                value.copy_(weights[our_name(name)])
    return model


BUILDERS = {"ours-family": Ours, "transformers-family": Transformers}
