"""Loading: the same numbers as on disk, no code run, complete configs, a report that names what is wrong."""

import shutil
from functools import partial
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from xtuner_plugins.export.export import convert
from xtuner_plugins.hub.constants import IMAGENET_MEAN, IMAGENET_STD
from xtuner_plugins.weights import official
from xtuner_plugins.weights.loader import load_model, load_tokenizer, over_ranks, partition_dtype, read_config
from xtuner_plugins.weights.reading import read_json
from xtuner_plugins.weights.writer import write_json


def test_numbers_come_module_by_module(toy_base, tmp_path):
    """Each module can be split over ranks or quantized before the next is read. Nothing in the directory runs."""
    base, largest = shutil.copytree(toy_base, tmp_path / "base"), 0
    for path in base.glob("*.py"):
        path.write_text("raise RuntimeError('code from the directory ran')")
    fields = read_json(base / "tokenizer_config.json")
    write_json(base / "tokenizer_config.json", fields | {"auto_map": {"AutoTokenizer": ["conversation.X", None]}})
    load_tokenizer(base)
    held = load_file(base / "model.safetensors")

    def filled(model, name):
        nonlocal largest
        largest = max(largest, sum(p.numel() for p in model.parameters() if not p.is_meta))
        for leaf, parameter in model.get_submodule(name).named_parameters(recurse=False):
            assert torch.equal(parameter, held.pop(f"{name}.{leaf}".lstrip(".")))
        model.get_submodule(name)._apply(lambda tensor: tensor.to("meta"), recurse=False)

    model = load_model(base, dtype=None, filled=filled)
    assert not held and all(p.is_meta for p in model.parameters()) and not model.training
    assert largest == max(p.numel() for p in model.parameters())
    whole, stops = load_model(base), read_json(base / "generation_config.json")["eos_token_id"]
    assert {(tensor.dtype, tensor.is_meta) for tensor in whole.parameters()} == {(torch.bfloat16, False)}
    assert whole.generation_config.eos_token_id == stops


def test_what_does_not_fit(toy_parts, toy_base, tmp_path, refused):
    held, fields = load_file(toy_base / "model.safetensors"), read_json(toy_base / "config.json")
    down = next(name for name in held if name.endswith("down_proj.weight"))
    unmerged = {f"language_model.model.layers.{n}.x.lora_A.weight": torch.ones(1) for n in range(5)}
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "tokenizer.json").write_text("{")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    for name, tensors, changes in (
        ("names", {"extra.weight": torch.ones(1), "mlp1.1.bias": torch.ones(5), "mlp1.3.bias": None}, {}),
        ("unmerged", unmerged, {}),
        ("nan", {down: held[down] * torch.nan}, {}),
        ("wrapped", {}, {"use_llm_lora": 16}),
        ("deep", {}, {"select_layer": -9}),
        ("whole", {down: held[down].int()}, {}),
        ("untyped", {}, {"torch_dtype": "nope"}),
        ("stops", {}, {}),
        ("elsewhere", {}, {}),
    ):
        shutil.copytree(toy_base, tmp_path / name)
        kept = {name: tensor for name, tensor in {**held, **tensors}.items() if tensor is not None}
        save_file(kept, tmp_path / name / "model.safetensors")
        write_json(tmp_path / name / "config.json", fields | changes)
    write_json(tmp_path / "stops" / "generation_config.json", {"eos_token_id": [5, 10**9]})
    write_json(tmp_path / "elsewhere" / "tokenizer_config.json", {"tokenizer_file": "/etc/passwd", "vocab_file": None})
    shape = r".*mlp1.1.bias is \[5\], the model has \[64\]"
    for call, path, words in (
        (load_model, "names", f"1 missing: mlp1.3.bias; 1 unexpected: extra.weight; {shape}"),
        (load_model, "unmerged", "5 unexpected: .*layers.3.x.lora_A.weight; these are unmerged adapters"),
        (load_model, "nan", f"{down} holds NaN or infinity as torch.float32; take other weights"),
        (partial(convert, out=tmp_path / "out", format="hf"), "nan", f"nan: {down} holds NaN"),
        (load_model, "wrapped", "wrapped: config.json names unmerged adapters .*merge them first"),
        (load_model, "deep", r"deep: select_layer = -9, but the encoder has \d layers"),
        (load_model, "whole", f"1 of whole numbers: {down}"),
        (load_model, "untyped", "untyped/config.json: module 'torch' has no attribute 'nope'"),
        (load_model, "stops", r"generation_config.json is \[5, 1000000000\], expected ids below"),
        (load_tokenizer, "elsewhere", "names its own tokenizer_file; only files of this directory are read"),
        (load_model, toy_parts[1], "not an official InternVL directory.*build_base_model"),
        (read_config, "nowhere", "does not exist"),
        (read_config, ".", "has no config.json"),
        (load_tokenizer, "nowhere", "holds no tokenizer"),
        (load_tokenizer, "torn", "torn: the tokenizer can't be loaded"),
        (load_tokenizer, ".", "offers only a slow tokenizer"),
        (load_tokenizer, toy_parts[1], "lacks <img>"),
    ):
        refused(words, call, tmp_path / path)


def test_configs_are_complete(toy_base):
    """What is written leaves nothing to a reader's defaults; missing fields mean what the config class says."""
    written, pixels = (read_json(toy_base / name) for name in ("config.json", "preprocessor_config.json"))
    expected = dict(architectures=["InternVLChatModel"], auto_map=official.AUTO_MAP, model_type="internvl_chat")
    expected |= dict(template="internvl2_5", select_layer=-1, ps_version="v2", downsample_ratio=0.5, image_fold=None)
    expected |= dict(force_image_size=112, dynamic_image_size=True, use_thumbnail=True, min_dynamic_patch=1)
    expected |= dict(max_dynamic_patch=12, use_backbone_lora=0, use_llm_lora=0, pad2square=False, hidden_size=64)
    expected |= dict(tie_word_embeddings=False, torch_dtype="float32", output_attentions=False)
    assert written == {**written, **expected, "transformers_version": "4.37.2"} and len(written) == 23
    expected = dict(do_normalize=True, do_resize=True, do_center_crop=True, resample=3, size=112, crop_size=112)
    expected |= dict(image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD))
    assert pixels == {**expected, "feature_extractor_type": "CLIPFeatureExtractor"}
    complete = official.read_config({"vision_config": {"image_size": 448}, "llm_config": {"model_type": "qwen2"}}, ".")
    expected = dict(ps_version="v1", downsample_ratio=0.5, select_layer=-1, force_image_size=448, max_dynamic_patch=6)
    assert complete.items() >= {**expected, "llm_config": {"model_type": "qwen2"}}.items()
    assert complete["vision_config"]["hidden_size"] == 3200
    parts = complete["vision_config"], complete["llm_config"]
    made = [official.make_config(*parts, dtype="x", projector_type="mlp", max_tiles=n) for n in (1, 2)]
    assert [each["use_thumbnail"] for each in made] == [False, True]
    limits = {"dynamic_image_size": False, "min_dynamic_patch": 3, "max_dynamic_patch": 12}
    assert official.tile_limits(limits) == (1, 1)
    assert official.tile_limits({**limits, "dynamic_image_size": True}) == (3, 12)
    for config, dtype in (
        ({"bf16": {"enabled": True}}, torch.bfloat16),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": False}}, torch.float16),
        ({"bf16": {}}, torch.float32),
    ):
        assert partition_dtype(config) == dtype  # what DeepSpeed computes in
    with mock.patch("deepspeed.zero.Init") as split:
        model = load_model(toy_base, filled=over_ranks({"zero_optimization": {"stage": 3}, "gradient_clipping": 1}))
    given = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    assert all(call.kwargs["config_dict_or_path"] == given for call in split.call_args_list)
    parts = [parameter for call in split.call_args_list for parameter in call.kwargs["module"]]
    assert [*map(id, parts)] == [*map(id, model.parameters())]
