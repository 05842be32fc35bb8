"""Opens a model directory as its users do, with nothing but torch and transformers, and prints the latter's version.

    python version_probe.py MODEL_DIR WORK_DIR

Runs in a process of its own under any transformers release: the directory's own code is executed, this project can't
be imported. What must hold is asserted: save and reload, eager against SDPA, batch against single. Any failure is a
traceback and a non-zero status. A reloadable copy stays in WORK_DIR/saved.
"""

import json
import os
import sys
from pathlib import Path

sys.modules["xtuner_plugins"] = None  # an import of it is an ImportError from here on

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

TEXT = "Which number? 你好, 3 apples: <img><IMG_CONTEXT></img> (a-b)_c\n\n  end<|im_end|>"
NUMBER, COLOR = "Which number is it?", "Which color is it, and where does it stand in the image?"


class Probe:
    """A model directory with its tokenizers, slow and fast, and the model in float32."""

    def __init__(self, directory):
        self.directory = directory
        self.tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True, use_fast=False)
        self.fast = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
        if self.tokenizer is False and transformers.__version__ == "4.49.0":
            self.tokenizer = self.fast  # this release can't open as slow what it has saved itself without a slow class
        self.model = self.load()
        # Rows of the embeddings without a token: slow tokenizers of some releases can't decode their ids.
        tokenless = list(range(len(self.tokenizer), self.model.config.llm_config.vocab_size))
        self.options = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": tokenless or None}
        side = self.model.config.force_image_size
        # Written out rather than drawn, so that every release sees the same pixels whatever its torch.
        ramp = torch.arange(3 * 3 * side * side, dtype=torch.float64)
        self.tiles = torch.sin(ramp * 0.37).float().reshape(3, 3, side, side) * 1.5

    def load(self, directory=None, auto=AutoModel, **options):
        """A model in evaluation mode, by default in float32; every tensor must have been found."""
        options = {"torch_dtype": torch.float32, "trust_remote_code": True, "output_loading_info": True, **options}
        model, info = auto.from_pretrained(directory or self.directory, **options)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[kind], (kind, info[kind])
        assert {parameter.dtype for parameter in model.parameters()} == {options["torch_dtype"]}
        return model.eval()

    def inputs(self, model):
        """Three tiles and ids [1, S] of a fixed prompt with them."""
        model.img_context_token_id = self.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        ids = torch.tensor([model.build_prompt_ids(self.tokenizer, "<image>\n" + NUMBER, [3])])
        return {"pixel_values": self.tiles, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @torch.no_grad()
    def logits(self, model):
        """[S, V] of the fixed prompt."""
        return model(**self.inputs(model)).logits[0]

    def chat(self, pixels, question, model=None, **options):
        """A short answer without sampling, whatever else the options say."""
        given = {**self.options, **options.pop("given", {})}
        return (model or self.model).chat(self.tokenizer, pixels, question, given, **options)


def names(probe):
    """Classes are the directory's own and transformers'; configs can be made without arguments."""
    model, config = probe.model, AutoConfig.from_pretrained(probe.directory, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules") and repr(config)
    assert type(config)().llm_config.hidden_size and type(model).__name__ == "InternVLChatModel"
    llm = model.language_model
    assert type(llm).__module__.startswith("transformers.models.") and not llm.config.tie_word_embeddings


def token_ids(probe):
    """By fast and by slow tokenizers; control tokens that somebody says are characters."""
    history = [("<image>\nHi<|im_end|>\n<|im_start|>", "\n\n Yes <ref>a</ref><|im_end|>"), (" <image>?", "  12 你好")]
    asked = ("And <IMG_CONTEXT>\n now?", [1, 2], history)
    fast, slow = (probe.model.build_prompt_ids(each, *asked) for each in (probe.fast, probe.tokenizer))
    plain = probe.model.build_prompt_ids(probe.fast, "a", [1, 2], [("<image>b", "c"), ("<image>d", "e")])
    assert fast == slow and probe.fast(TEXT).input_ids == probe.tokenizer(TEXT).input_ids
    for number in map(probe.fast.convert_tokens_to_ids, ("<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>")):
        assert fast.count(number) == plain.count(number), number


def forward(probe):
    """Every way of loading gives the same logits, written-out attention nearly so."""
    expected = probe.logits(probe.model)
    for name in ("eager", "sdpa"):
        model = probe.load(attn_implementation=name)
        is_other_tower = hasattr(model.vision_model, "unused_modules")  # CLIP has no SDPA in the oldest releases
        assert model.vision_model.config._attn_implementation in ((name, "eager") if is_other_tower else (name,))
        has_it = name == "eager" or model.language_model._supports_sdpa  # Phi-3 hasn't in 4.44
        assert model.language_model.config._attn_implementation == (name if has_it else "eager")
        assert (probe.logits(model) - expected).abs().max() < 1e-5, name  # fp32, logits of order 1 to 10
    flash, no_flash = {"use_flash_attn": True}, {"use_flash_attn": False, "low_cpu_mem_usage": True}
    for options in (flash, no_flash, {"device_map": "auto"}, {"auto": AutoModelForCausalLM}):
        assert torch.equal(probe.logits(probe.load(**options)), expected), options


def answers(probe):
    """One image, several, none, a second turn; a batch answers as one by one; options that contradict each other."""
    assert isinstance(probe.chat(probe.tiles, "This <image> or that <image>?", num_patches_list=[2, 1]), str)
    one, history = probe.chat(probe.tiles, NUMBER, return_history=True)
    _, history = probe.chat(probe.tiles, "And now?", history=history, return_history=True)
    assert [question for question, _ in history] == ["<image>\n" + NUMBER, "And now?"]
    assert one != probe.chat(None, COLOR)
    asked = (probe.tiles, [NUMBER, COLOR], probe.options)
    batch = probe.model.batch_chat(probe.tokenizer, *asked, num_patches_list=[2, 1])
    assert batch == [probe.chat(probe.tiles[:2], NUMBER), probe.chat(probe.tiles[2:], COLOR)], batch
    assert probe.chat(probe.tiles, NUMBER, given={"top_p": 0.9, "temperature": 0.7}) == one
    model = probe.load(torch_dtype=torch.bfloat16)
    assert probe.chat(probe.tiles.bfloat16(), NUMBER, model) is not None


def saved(probe, path):
    """Weights, code and tokenizer are written, in the names that every release reads."""
    probe.model.save_pretrained(str(path))
    probe.tokenizer.save_pretrained(str(path))
    directory = Path(probe.directory)
    assert {file.name for file in path.glob("*.py")} == {file.name for file in directory.glob("*.py")}
    assert torch.equal(probe.logits(probe.load(str(path))), probe.logits(probe.model))
    fields, original = (json.loads((each / "config.json").read_text(encoding="utf-8")) for each in (path, directory))
    kept = "template ps_version force_image_size select_layer max_dynamic_patch torch_dtype tie_word_embeddings".split()
    assert {key: fields[key] for key in kept} == {key: original[key] for key in kept}
    kept = ("rope_theta", "rope_scaling", "hidden_size", "vocab_size", "num_key_value_heads")
    assert {key: fields["llm_config"][key] for key in kept} == {key: original["llm_config"][key] for key in kept}


def loss(probe):
    """Of a training step that recomputes activations; every parameter in use has a gradient."""
    model = probe.load().train()
    model.gradient_checkpointing_enable()
    inputs = probe.inputs(model)
    loss = model(image_flags=torch.ones(3, 1), labels=inputs["input_ids"], **inputs).loss
    loss.backward()
    left_out = getattr(model.vision_model, "unused_modules", lambda layer: [])(model.select_layer)
    unused = {id(parameter) for module in left_out for parameter in module.parameters()}
    without = [name for name, p in model.named_parameters() if p.grad is None and id(p) not in unused]
    assert not without, without


def main(directory, work_dir):
    probe = Probe(directory)
    for check in (names, token_ids, forward, answers, loss):
        check(probe)
    saved(probe, Path(work_dir, "saved"))
    print(transformers.__version__)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(*sys.argv[1:])
