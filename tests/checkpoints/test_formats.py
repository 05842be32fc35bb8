"""Other layouts: the -hf form opens in transformers' own classes and comes back to the bit; InternLM2 stays itself."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.checkpoints.language_models import write_llm
from tests.checkpoints.training import LORA, SETTINGS, chat_inputs, logits, make_model, save_pth, write_config
from tests.checkpoints.vocabularies import write_internlm2
from xtuner_plugins.checkpoints import mappings
from xtuner_plugins.checkpoints.assemble import build_base
from xtuner_plugins.checkpoints.export import convert, export
from xtuner_plugins.checkpoints.loader import load_model, load_tokenizer, load_trained
from xtuner_plugins.checkpoints.reader import CheckpointError, read_json
from xtuner_plugins.checkpoints.tensors import MemoryTensor
from xtuner_plugins.checkpoints.writer import write_json
from xtuner_plugins.hub.constants import ADDED_TOKENS
from xtuner_plugins.toy.models import write_random_parts

RMS_TOWER = dict(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)


@pytest.fixture(scope="module", params=["300M style", "6B style"])
def base(request, tmp_path_factory, toy_base):
    if request.param == "300M style":
        return toy_base
    folder = tmp_path_factory.mktemp("rms")
    parts = write_random_parts(folder, vision_overrides=RMS_TOWER)
    build_base(*parts, folder / "base", dtype="float32")
    return folder / "base"


@torch.no_grad()
def native_logits(directory, inputs):
    from transformers import InternVLForConditionalGeneration

    model, info = InternVLForConditionalGeneration.from_pretrained(
        directory, torch_dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixels, ids, _ = inputs
    return model.eval()(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_native_form_and_back(base, tmp_path):
    convert(base, tmp_path / "hf", form="hf")
    ours, _ = load_model(base, dtype=None)
    ours.img_context_token_id = load_tokenizer(base).convert_tokens_to_ids("<IMG_CONTEXT>")
    inputs = chat_inputs(ours)
    reference, native = logits(ours, inputs), native_logits(tmp_path / "hf", inputs)
    rows = reference.shape[-1]
    assert native.shape[-1] == rows + 1  # the row of <video>
    # two implementations in fp32, 2+2 layers
    assert (native[..., :rows] - reference).abs().max() <= 1e-5
    direct, _ = load_model(tmp_path / "hf", dtype=None)
    assert torch.equal(logits(_with_context(direct, ours), inputs)[..., :rows], reference)

    convert(tmp_path / "hf", tmp_path / "back", form="official")
    a, b = load_file(base / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    old, new = read_json(base / "config.json"), read_json(tmp_path / "back" / "config.json")
    assert {k: v for k, v in new["llm_config"].items() if v != old["llm_config"].get(k)} == {}
    assert {k for k in old["vision_config"] if old["vision_config"][k] != new["vision_config"].get(k)} <= {
        "use_flash_attn"
    }
    assert {k for k in old if old[k] != new.get(k)} <= {"vision_config"}
    assert load_tokenizer(tmp_path / "back").get_vocab() == load_tokenizer(base).get_vocab()


def _with_context(model, other):
    model.img_context_token_id = other.img_context_token_id
    return model


def test_native_processor_prompts_and_tiles(toy_base, tmp_path):
    from transformers import AutoProcessor

    from xtuner_plugins.hub.conversation import get_conv_template

    convert(toy_base, tmp_path / "hf", form="hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    picture = Image.new("RGB", (336, 224), "red")
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    conversation = get_conv_template("internvl2_5")
    conversation.append_message(conversation.roles[0], "<IMG_CONTEXT>\nWhat?")
    conversation.append_message(conversation.roles[1], None)
    assert text == conversation.get_prompt()
    batch = processor(text=text, images=[picture], return_tensors="pt")
    context = read_json(tmp_path / "hf" / "config.json")["image_token_id"]
    assert batch["pixel_values"].shape == (7, 3, 112, 112)  # 3 x 2 tiles and the thumbnail
    assert (batch["input_ids"] == context).sum() == 7 * 16
    native_logits(tmp_path / "hf", (batch["pixel_values"], batch["input_ids"], None))


def test_trained_model_as_native(toy_base, tmp_path):
    trained = make_model(toy_base, **SETTINGS["both_loras"])
    config = write_config(tmp_path / "c.py", toy_base, **SETTINGS["both_loras"])
    export(config, save_pth(trained, tmp_path / "iter_1.pth"), tmp_path / "hf", form="hf")
    inputs = chat_inputs(trained.model)
    gap = native_logits(tmp_path / "hf", inputs)[..., :-1] - logits(trained.model, inputs)
    assert gap.abs().max() <= 1e-5


def test_what_the_native_form_cannot_say(toy_base, tmp_path):
    shutil.copytree(toy_base, tmp_path / "v1")
    write_json(tmp_path / "v1" / "config.json", {**read_json(toy_base / "config.json"), "ps_version": "v1"})
    with pytest.raises(CheckpointError, match="can't express ps_version='v1'"):
        convert(tmp_path / "v1", tmp_path / "out", form="hf")
    assert not (tmp_path / "out").exists()


def as_internlm2(base, folder):
    """A copy of a base with its language model in InternLM2's published names, 4 query and 2 key/value heads."""
    shutil.copytree(base, folder)
    config = read_json(base / "config.json")
    llm = {k: v for k, v in config["llm_config"].items() if "sliding" not in k and k != "max_window_layers"}
    config["llm_config"] = {**llm, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    held = load_file(base / "model.safetensors")
    keep = {k: v for k, v in held.items() if not k.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))}
    mapping = mappings.inside(mappings.internlm2_llama(4, 2))
    stored = mapping.to_left({k: MemoryTensor(v) for k, v in keep.items()})
    save_file({k: v.read() for k, v in stored.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    for name in ("modeling_internlm2.py", "configuration_internlm2.py"):
        (folder / name).write_text("# the release's own code\n")
    return folder


@pytest.fixture(scope="module")
def internlm2_base(tmp_path_factory, toy_base):
    """The toy base as InternLM2."""
    return as_internlm2(toy_base, tmp_path_factory.mktemp("internlm2") / "base")


def test_internlm2_stays_internlm2(internlm2_base, tmp_path):
    settings = dict(llm_lora={**LORA, "type": LoraConfig, "target_modules": ["q_proj", "o_proj", "up_proj"]})
    trained = make_model(internlm2_base, **settings)
    checkpoint = save_pth(trained, tmp_path / "iter_1.pth")
    config = write_config(tmp_path / "c.py", internlm2_base, **settings)
    export(config, checkpoint, tmp_path / "out")
    base, out = load_file(internlm2_base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert base.keys() == out.keys() and all(base[k].shape == out[k].shape for k in base)
    changed = {k.split("layers.0.")[1] for k in base if not torch.equal(base[k], out[k]) and "model.layers.0." in k}
    assert changed == {"attention.wqkv.weight", "attention.wo.weight", "feed_forward.w3.weight"}
    assert read_json(tmp_path / "out" / "config.json") == read_json(internlm2_base / "config.json")
    assert (tmp_path / "out" / "modeling_internlm2.py").read_text() == "# the release's own code\n"
    inputs = chat_inputs(trained.model)
    for model in (load_model(tmp_path / "out", dtype=None)[0], load_trained(config, checkpoint, dtype=None)):
        gap = logits(_with_context(model, trained.model), inputs) - logits(trained.model, inputs)
        assert gap.abs().max() <= 1e-5
    export(config, checkpoint, tmp_path / "hf", form="hf")
    assert (native_logits(tmp_path / "hf", inputs)[..., :-1] - logits(trained.model, inputs)).abs().max() <= 1e-5


def test_internlm2_with_its_own_vocabulary(toy_parts, tmp_path):
    """A directory as published, without tokenizer.json: trained, exported as itself, and in the -hf form."""
    from transformers import AutoProcessor

    llm = write_llm("internlm2", tmp_path / "llm", toy_parts[1], own_vocabulary=True)
    build_base(toy_parts[0], llm, tmp_path / "assembled", template="internlm2-chat", dtype="float32")
    base = as_internlm2(tmp_path / "assembled", tmp_path / "base")
    for path in [*base.glob("*token*")]:
        path.unlink()
    write_internlm2(base, image_tokens=ADDED_TOKENS, model=(llm / "tokenizer.model").read_bytes())
    prompt = "<|im_start|>user\n<img><IMG_CONTEXT></img>\n你好 2 cats<|im_end|><|im_start|>assistant\n"
    expected = load_tokenizer(tmp_path / "assembled")(prompt).input_ids
    assert load_tokenizer(base)(prompt).input_ids == expected and expected[0] == 1

    trained = make_model(base, llm_lora=LORA)
    assert trained.model.img_context_token_id == load_tokenizer(base).convert_tokens_to_ids("<IMG_CONTEXT>")
    checkpoint, config = (
        save_pth(trained, tmp_path / "iter_1.pth"),
        write_config(tmp_path / "c.py", base, llm_lora=LORA),
    )
    export(config, checkpoint, tmp_path / "out")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    export(config, checkpoint, tmp_path / "hf", form="hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    picture = Image.new("RGB", (336, 224), "red")
    batch = processor(text=prompt, images=[picture], return_tensors="pt")
    context = read_json(tmp_path / "hf" / "config.json")["image_token_id"]
    at = expected.index(context)
    # the processor writes <img> and </img> around its tokens itself
    ids = [token for token in batch["input_ids"][0].tolist() if token != context]
    assert ids[:at] == expected[:at] and ids[-8:] == expected[-8:]
    inputs = chat_inputs(trained.model)
    assert (native_logits(tmp_path / "hf", inputs)[..., :-1] - logits(trained.model, inputs)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "lacking",
    [pytest.param("all of it", marks=pytest.mark.slow), "modeling_internlm2.py", "conversation.py", "auto_map"],
)
def test_internlm2_without_its_code_opens_everywhere(internlm2_base, tmp_path, lacking):
    """What its own code can't open any more is written in the exact Llama form, with our code, and says so."""
    base = tmp_path / "base"
    shutil.copytree(internlm2_base, base)
    if lacking == "all of it":
        for path in base.glob("*.py"):
            path.unlink()
    elif lacking == "auto_map":
        fields = read_json(base / "config.json")
        write_json(base / "config.json", {k: v for k, v in fields.items() if k != "auto_map"})
    else:
        (base / lacking).unlink()
    trained = make_model(base)
    checkpoint = save_pth(trained, tmp_path / "iter_1.pth")
    done = export(write_config(tmp_path / "c.py", base), checkpoint, tmp_path / "out")
    (note,) = done["notes"]
    assert "exact Llama form" in note and (lacking if lacking != "all of it" else "internlm2") in note
    code = """
import sys, torch
sys.modules["xtuner_plugins"] = None
from transformers import AutoModel, AutoTokenizer
options = dict(trust_remote_code=True, torch_dtype=torch.float32, output_loading_info=True)
model, info = AutoModel.from_pretrained("out", **options)
assert not info["missing_keys"] and not info["unexpected_keys"], info
tokenizer = AutoTokenizer.from_pretrained("out", trust_remote_code=True)
print(type(model.language_model).__name__, model.eval().chat(tokenizer, None, "Hi", dict(max_new_tokens=3)) is not None)
"""
    if lacking == "all of it":
        clean = subprocess.run(
            [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert clean.stdout.split() == ["LlamaForCausalLM", "True"], clean.stderr
    inputs = chat_inputs(trained.model)
    model = _with_context(load_model(tmp_path / "out", dtype=None)[0], trained.model)
    assert torch.equal(logits(model, inputs), logits(trained.model, inputs))


def test_code_that_is_not_whole_is_replaced_by_ours(toy_base, tmp_path):
    shutil.copytree(toy_base, tmp_path / "base")
    (tmp_path / "base" / "conversation.py").unlink()
    config = write_config(tmp_path / "c.py", tmp_path / "base")
    done = export(config, save_pth(make_model(toy_base), tmp_path / "iter_1.pth"), tmp_path / "out")
    assert "lacks conversation.py" in done["notes"][0] and (tmp_path / "out" / "conversation.py").is_file()


def test_unknown_layout(tmp_path, toy_parts):
    with pytest.raises(CheckpointError, match="not an official InternVL directory"):
        convert(toy_parts[1], tmp_path / "out", form="hf")


def test_adapter_only(toy_base, tmp_path):
    from peft import PeftModel

    from xtuner_plugins.checkpoints.adapters import export_adapter

    trained = make_model(toy_base, **SETTINGS["both_loras"])
    config = write_config(tmp_path / "c.py", toy_base, **SETTINGS["both_loras"])
    checkpoint = save_pth(trained, tmp_path / "iter_1.pth")
    done = export_adapter(config, checkpoint, tmp_path / "adapter")
    assert done["parts"] == ["language_model", "vision_model"]
    model, _ = load_model(toy_base, dtype=None)
    model.load_state_dict(load_file(tmp_path / "adapter" / "replaced.safetensors"), strict=False)
    PeftModel.from_pretrained(model.language_model, tmp_path / "adapter" / "language_model")
    PeftModel.from_pretrained(model.vision_model, tmp_path / "adapter" / "vision_model")
    inputs = chat_inputs(trained.model)
    assert torch.equal(logits(_with_context(model.eval(), trained.model), inputs), logits(trained.model, inputs))
    # and such an adapter is itself a checkpoint
    export(config, tmp_path / "adapter" / "language_model", tmp_path / "llm_only")
    merged = load_file(tmp_path / "llm_only" / "model.safetensors")
    full = load_trained(config, checkpoint, dtype=None).state_dict()
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    assert torch.equal(merged[name], full[name])
    config = write_config(tmp_path / "p.py", toy_base)
    with pytest.raises(CheckpointError, match="holds no LoRA tensors"):
        export_adapter(config, save_pth(make_model(toy_base), tmp_path / "p.pth"), tmp_path / "none")


def test_old_memory_names_of_hf_directories(toy_base, tmp_path):
    """Some -hf directories were saved under transformers' names in memory."""
    convert(toy_base, tmp_path / "hf", form="hf")
    held = load_file(tmp_path / "hf" / "model.safetensors")
    renamed = {}
    for name, tensor in held.items():
        name = name.replace("language_model.model.", "model.language_model.")
        renamed[name.replace("language_model.lm_head.", "lm_head.").replace("vision_tower.", "model.vision_tower.")
                .replace("multi_modal_projector.", "model.multi_modal_projector.")] = tensor  # fmt: skip
    save_file(renamed, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "hf", tmp_path / "back", form="official")
    a, b = load_file(toy_base / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_tool_converts(run_tool, toy_base, tmp_path):
    done = run_tool("tools/convert_to_official.py", "--from", toy_base, tmp_path / "hf", "--format", "hf")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "internvl"
