"""Mapping tables: every tensor of the real classes is covered, nothing collides, round trips are exact to the bit."""

import pytest
import torch
from accelerate import init_empty_weights
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from xtuner_plugins.export import llava
from xtuner_plugins.toy.models import VISION_CONFIG, vision_config, vision_shapes
from xtuner_plugins.weights import hf, internlm2, qwen1
from xtuner_plugins.weights.lazy import MemoryTensor
from xtuner_plugins.weights.mapping import inside
from xtuner_plugins.weights.reading import CheckpointError

SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=40,
)


def official_tensors(norm="layer_norm", qk_norm=False, qkv_bias=True):
    overrides = dict(norm_type=norm, qk_normalization=qk_norm, qkv_bias=qkv_bias)
    shapes = {f"vision_model.{k}": v for k, v in vision_shapes(vision_config(overrides)).items()}
    wide = 4 * VISION_CONFIG["hidden_size"]
    for layer, shape in (("0", (wide,)), ("1", (32, wide)), ("3", (32, 32))):
        shapes |= {f"mlp1.{layer}.weight": shape, f"mlp1.{layer}.bias": shape[:1]}
    with init_empty_weights():
        llm = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))
    shapes |= {f"language_model.{k}": tuple(v.shape) for k, v in llm.state_dict().items()}
    return {k: MemoryTensor(torch.randn(s)) for k, s in shapes.items()}


def on_disk(name):
    """The rule by which transformers names on disk what it holds in memory."""
    name = name.replace("model.language_model.", "language_model.model.")
    return name.replace("lm_head.", "language_model.lm_head.").removeprefix("model.")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k].read(), b[k].read()) for k in a)


@pytest.mark.parametrize("tower", [dict(), dict(norm="rms_norm", qk_norm=True, qkv_bias=False)])
def test_hf(tower):
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    tensors = official_tensors(**tower)
    theirs = hf.KEYS.to_right(tensors)
    assert same(hf.KEYS.to_left(theirs), tensors)
    vision = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=[112, 112],
        norm_type=tower.get("norm", "layer_norm"),
        use_qk_norm=tower.get("qk_norm", False),
        attention_bias=tower.get("qkv_bias", True),
        use_mask_token=False,
    )
    config = InternVLConfig(
        vision_config=vision, text_config=dict(model_type="qwen2", **SIZES, tie_word_embeddings=False)
    )
    with init_empty_weights():
        model = InternVLForConditionalGeneration(config)
    in_memory = {}
    for name, tensor in model.state_dict().items():
        in_memory[on_disk(name)] = tuple(tensor.shape)
    assert {k: t.shape for k, t in theirs.items()} == in_memory


def internlm2_shapes():
    layer = {
        "attention.wqkv.weight": (64, 32),
        "attention.wo.weight": (32, 32),
        "feed_forward.w1.weight": (48, 32),
        "feed_forward.w2.weight": (32, 48),
        "feed_forward.w3.weight": (48, 32),
        "attention_norm.weight": (32,),
        "ffn_norm.weight": (32,),
    }
    shapes = {f"model.layers.{i}.{k}": v for i in range(2) for k, v in layer.items()}
    return {**shapes, "model.tok_embeddings.weight": (40, 32), "model.norm.weight": (32,), "output.weight": (40, 32)}


def test_internlm2():
    tensors = {k: MemoryTensor(torch.randn(s)) for k, s in internlm2_shapes().items()}
    mapping = internlm2.keys(SIZES)
    llama = mapping.to_right(tensors)
    with init_empty_weights():
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert {k: t.shape for k, t in llama.items()} == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert same(mapping.to_left(llama), tensors)
    fused = tensors["model.layers.1.attention.wqkv.weight"].read().view(2, 4, 8, 32)  # [kv heads, 2 q + k + v, dim, D]
    for name, part in (("q", fused[:, :2]), ("k", fused[:, 2]), ("v", fused[:, 3])):
        assert torch.equal(llama[f"model.layers.1.self_attn.{name}_proj.weight"].read(), part.reshape(-1, 32))


@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
def test_llava(tower):
    from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = AutoConfig.for_model(
        tower,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=16,
        vision_use_head=False,
    )
    with init_empty_weights():
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=LlamaConfig(**SIZES)))
    disk = {}
    for name, tensor in model.state_dict().items():
        disk[on_disk(name)] = MemoryTensor(torch.randn(tensor.shape))
    ours = llava.KEYS.to_left(disk)
    assert {n.split(".")[0] for n in ours} == {"vision_model", "mlp1", "language_model"}
    assert same(llava.KEYS.to_right(ours), disk)


ALL = {
    "hf": hf.KEYS,
    "internlm2": internlm2.keys(SIZES),
    "qwen1": qwen1.KEYS,
    "llava": llava.KEYS,
    "inside": inside(internlm2.keys(SIZES)),
}


@pytest.mark.parametrize("name", ALL)
def test_tables_are_bijections(name):
    """Filled templates: each left name leads to right names that all lead back to it, and no two rows share a name."""
    seen_left, seen_right = set(), set()
    for row in ALL[name].rows:
        for p in ("weight", "bias"):
            fill = dict(i="3", p=p, rest="model.layers.3.x.weight")
            left = row.left.format(**fill)
            renamed = ALL[name].to_right({left: MemoryTensor(torch.ones(24, 1))})
            rights = tuple(renamed)
            assert rights == tuple(t.format(**fill) for t in row.rights)
            assert ALL[name].to_left(renamed).keys() == {left}
            if "{p}" in row.left or p == "weight":
                assert left not in seen_left and not seen_right & set(rights)
                seen_left.add(left)
                seen_right.update(rights)


def test_uncovered_and_incomplete():
    with pytest.raises(CheckpointError, match="odd.weight is not a tensor of the official InternVL format"):
        hf.KEYS.to_right({"odd.weight": MemoryTensor(torch.ones(1))})
    name = "vision_tower.encoder.layer.0.attention.q_proj.weight"
    with pytest.raises(CheckpointError, match=r"qkv\.weight can't be put together.*k_proj"):
        hf.KEYS.to_left({name: MemoryTensor(torch.ones(1, 1))})
    parts = {f"vision_tower.encoder.layer.0.attention.{n}_proj.weight": MemoryTensor(torch.ones(2, 1)) for n in "qk"}
    for odd in (torch.ones(5, 1), torch.ones(2, 3), torch.ones(2, 1).half()):
        with pytest.raises(CheckpointError, match="tensors that belong together|can't be cut"):
            hf.KEYS.to_left({**parts, "vision_tower.encoder.layer.0.attention.v_proj.weight": MemoryTensor(odd)})
    with pytest.raises(CheckpointError, match="65 rows can't be cut in 2 groups of the shares"):
        internlm2.keys(SIZES).to_right({"model.layers.0.attention.wqkv.weight": MemoryTensor(torch.ones(65, 1))})
