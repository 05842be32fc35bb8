"""Opens a model directory as its users do, with nothing but torch and transformers, and reports what it found.

    python version_probe.py MODEL_DIR WORK_DIR REPORT.json

Runs in a process of its own under any transformers release: the directory's own code is executed, this project can't
be imported. The report holds logits, answers and token ids for comparison with other releases; what must hold within a
release (save and reload, eager against SDPA, batch against single) is asserted here. Any failure is a traceback and
a non-zero status.
"""

import inspect
import json
import os
import sys
import time
from pathlib import Path

sys.modules["xtuner_plugins"] = None  # an import of it is an ImportError from here on

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

GREEDY = {"max_new_tokens": 12, "do_sample": False}
TEXT = "Which number? 你好, 3 apples: <img><IMG_CONTEXT></img> (a-b)_c\n\n  end<|im_end|>"
STEPS = []


def step(function):
    """Registers a check; its return value goes into the report under its name."""
    STEPS.append(function)
    return function


class Probe:
    """What the checks share."""

    def __init__(self, directory, work_dir):
        self.directory = directory
        self.work_dir = Path(work_dir)
        self.config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
        self.tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True, use_fast=False)
        side = self.config.force_image_size
        # Written out rather than drawn, so that every release sees the same pixels whatever its torch.
        ramp = torch.arange(3 * 3 * side * side, dtype=torch.float64)
        self.tiles = torch.sin(ramp * 0.37).float().reshape(3, 3, side, side) * 1.5
        self.model = self.load()

    def load(self, directory=None, auto=AutoModel, **options):
        """A model in float32 and evaluation mode; every tensor must have been found."""
        model, info = auto.from_pretrained(
            directory or self.directory,
            torch_dtype=torch.float32,
            trust_remote_code=True,
            output_loading_info=True,
            **options,
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[kind], (kind, info[kind])
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        return model.eval()

    def logits(self, model):
        """[S, V] of a fixed prompt with three tiles."""
        prompt = model.build_prompt("<image>\nWhich number is it?", [3])
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        model.img_context_token_id = self.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        with torch.no_grad():
            out = model(pixel_values=self.tiles, input_ids=ids, attention_mask=torch.ones_like(ids))
        return out.logits[0]

    def chat(self, model, pixels, question, **options):
        return model.chat(self.tokenizer, pixels, question, dict(GREEDY), **options)


@step
def config(probe):
    config = probe.config
    assert type(config).__module__.startswith("transformers_modules"), type(config).__module__
    assert repr(config) and config.to_dict()["llm_config"]["model_type"] == config.llm_config.model_type
    assert type(config)().llm_config.hidden_size
    return {"model_type": config.model_type, "llm": config.llm_config.model_type}


@step
def tokenizer(probe):
    fast = AutoTokenizer.from_pretrained(probe.directory, trust_remote_code=True)
    ids = fast(TEXT).input_ids
    assert ids == probe.tokenizer(TEXT).input_ids
    return {"ids": ids, "decoded": fast.decode(ids, skip_special_tokens=True), "length": len(fast)}


@step
def model_code(probe):
    model = probe.model
    assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
    assert type(model).__name__ == "InternVLChatModel"
    assert type(model.language_model).__module__.startswith("transformers.models.")
    assert not model.language_model.config.tie_word_embeddings
    return {"image_tokens": model.num_image_token, "template": model.template}


@step
def prompt_ids(probe):
    """By fast and by slow tokenizers: answers alone, control tokens that somebody says as characters."""
    fast = AutoTokenizer.from_pretrained(probe.directory, trust_remote_code=True)
    history = [("<image>\nHi<|im_end|>\n<|im_start|>", "\n\n Yes <ref>a</ref><|im_end|>"), (" <image>?", "  12 你好")]
    ids = probe.model.build_prompt_ids(fast, "And <IMG_CONTEXT>\n now?", [1, 2], history)
    assert ids == probe.model.build_prompt_ids(probe.tokenizer, "And <IMG_CONTEXT>\n now?", [1, 2], history)
    plain = probe.model.build_prompt_ids(fast, "a", [1, 2], [("<image>b", "c"), ("<image>d", "e")])
    for token in ("<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>"):
        number = fast.convert_tokens_to_ids(token)
        assert ids.count(number) == plain.count(number), token
    return ids


@step
def forward(probe):
    return probe.logits(probe.model).tolist()


@step
def attention_implementations(probe):
    found = {}
    for name in ("eager", "sdpa"):
        model = probe.load(attn_implementation=name)
        is_other_tower = hasattr(model.vision_model, "unused_modules")  # CLIP has no SDPA in the oldest releases
        allowed = (name, "eager") if is_other_tower else (name,)
        assert model.vision_model.config._attn_implementation in allowed
        has_it = name == "eager" or model.language_model._supports_sdpa  # Phi-3 hasn't in 4.44
        assert model.language_model.config._attn_implementation == (name if has_it else "eager")
        found[name] = (probe.logits(model) - probe.logits(probe.model)).abs().max().item()
        assert found[name] < 1e-5, found  # fp32, logits of order 1 to 10
    return found


@step
def ways_of_loading(probe):
    expected = probe.logits(probe.model)
    ways = [
        {"use_flash_attn": True},
        {"use_flash_attn": False, "low_cpu_mem_usage": True},
        {"device_map": "auto"},
        {"auto": AutoModelForCausalLM},
    ]
    for options in ways:
        assert torch.equal(probe.logits(probe.load(**options)), expected), options


@step
def bfloat16(probe):
    model = AutoModel.from_pretrained(probe.directory, torch_dtype=torch.bfloat16, trust_remote_code=True).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert probe.chat(model, probe.tiles.bfloat16(), "Which number is it?") is not None


@step
def chat_one_image(probe):
    return probe.chat(probe.model, probe.tiles, "Which number is it?")


@step
def chat_several_images(probe):
    return probe.chat(probe.model, probe.tiles, "This <image> or that <image>?", num_patches_list=[2, 1])


@step
def chat_text_only(probe):
    return probe.chat(probe.model, None, "Which color is it?")


@step
def chat_history(probe):
    options = {"return_history": True}
    first, history = probe.chat(probe.model, probe.tiles, "Which number is it?", **options)
    second, history = probe.chat(probe.model, probe.tiles, "And now?", history=history, **options)
    assert [question for question, _ in history] == ["<image>\nWhich number is it?", "And now?"]
    return [first, second]


@step
def batch_chat(probe):
    questions = ["Which number is it?", "Which color is it, and where does it stand in the image?"]
    answers = probe.model.batch_chat(probe.tokenizer, probe.tiles, questions, dict(GREEDY), num_patches_list=[2, 1])
    alone = [
        probe.chat(probe.model, probe.tiles[:2], questions[0]),
        probe.chat(probe.model, probe.tiles[2:], questions[1]),
    ]
    assert answers == alone, (answers, alone)
    return answers


@step
def contradicting_options(probe):
    options = {**GREEDY, "top_p": 0.9, "temperature": 0.7}
    assert probe.model.chat(probe.tokenizer, probe.tiles, "Hello", options) == probe.chat(
        probe.model, probe.tiles, "Hello"
    )


@step
def count_mismatch(probe):
    try:
        probe.chat(probe.model, probe.tiles, "One <image>", num_patches_list=[2, 1])
    except ValueError as error:
        assert "image tokens" in str(error) and "image features" in str(error), error
    else:
        raise AssertionError("a missing placeholder went through")


@step
def save_and_reload(probe):
    path = probe.work_dir / "saved"
    probe.model.save_pretrained(str(path))
    probe.tokenizer.save_pretrained(str(path))
    code = sorted(file.name for file in Path(probe.directory).glob("*.py"))
    assert sorted(file.name for file in path.glob("*.py")) == code
    assert list(path.glob("*.safetensors"))
    again = probe.load(str(path))
    assert torch.equal(probe.logits(again), probe.logits(probe.model))
    with open(str(path / "config.json"), encoding="utf-8") as file:
        fields = json.load(file)
    with open(str(Path(probe.directory) / "config.json"), encoding="utf-8") as file:
        original = json.load(file)
    for key in ("template", "ps_version", "force_image_size", "select_layer", "max_dynamic_patch"):
        assert fields[key] == original[key], key
    for key in ("rope_theta", "rope_scaling", "hidden_size", "vocab_size", "num_key_value_heads"):
        assert fields["llm_config"][key] == original["llm_config"][key], (key, fields["llm_config"])
    assert fields["torch_dtype"] == "float32" and fields["tie_word_embeddings"] is False
    return fields["transformers_version"]


@step
def training_step(probe):
    model = probe.load().train()
    model.gradient_checkpointing_enable()
    ids = probe.tokenizer(model.build_prompt("<image>\nHello", [3]), return_tensors="pt").input_ids
    model.img_context_token_id = probe.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    loss = model(pixel_values=probe.tiles, input_ids=ids, image_flags=torch.ones(3, 1), labels=ids).loss
    loss.backward()
    left_out = getattr(model.vision_model, "unused_modules", lambda layer: [])(model.select_layer)
    unused = {id(parameter) for module in left_out for parameter in module.parameters()}
    without = [name for name, p in model.named_parameters() if p.grad is None and id(p) not in unused]
    assert not without, without
    return loss.item()


@step
def signatures(probe):
    parameters = {
        name: list(inspect.signature(getattr(probe.model, name)).parameters)
        for name in ("chat", "batch_chat", "generate", "forward", "extract_feature", "pixel_shuffle")
    }
    assert parameters["chat"][:4] == ["tokenizer", "pixel_values", "question", "generation_config"]
    return parameters


def main(directory, work_dir, report_path):
    report = {"transformers": transformers.__version__, "torch": torch.__version__, "seconds": {}}
    probe = Probe(directory, work_dir)
    for function in STEPS:
        begin = time.time()
        print("probe:", function.__name__, flush=True)
        report[function.__name__] = function(probe)
        report["seconds"][function.__name__] = round(time.time() - begin, 2)
    with open(report_path, "w", encoding="utf-8") as file:
        json.dump(report, file, ensure_ascii=False)
    print("probe: passed under transformers", transformers.__version__)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: version_probe.py MODEL_DIR WORK_DIR REPORT.json")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(*sys.argv[1:])
