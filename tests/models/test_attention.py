import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from xtuner_plugins.families import LLM_FAMILIES
from xtuner_plugins.models import VisionLanguageModel
from xtuner_plugins.models import attention as attention_module
from xtuner_plugins.models.attention import Segments, attend_to_segments, branch_off, no_mask, segment_attention

from .test_vlm import make_batch, run

BOUNDS = (0, 5, 6, 17)


def make_segments(bounds=BOUNDS):
    return Segments(bounds, torch.tensor(bounds, dtype=torch.int32))


def make_states(heads=6, kv_heads=2, length=BOUNDS[-1], dim=8):
    torch.manual_seed(0)
    return [torch.randn(1, count, length, dim, requires_grad=True) for count in (heads, kv_heads, kv_heads)]


def masked(query, key, value, window=None):
    """Attention with a mask of the whole row and repeated keys: what segments must equal."""
    sample = torch.bucketize(torch.arange(BOUNDS[-1]), torch.tensor(BOUNDS[1:]), right=True)
    mask = (sample[:, None] == sample[None]) & torch.ones(BOUNDS[-1], BOUNDS[-1], dtype=torch.bool).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)


@pytest.mark.parametrize("as_on_cuda", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 1, 3, 11, 100])
def test_equals_a_mask_of_the_whole_row(kv_heads, window, as_on_cuda, monkeypatch):
    """Also with keys and values repeated, as on a CUDA device without flash attention."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", as_on_cuda)
    ours, theirs = make_states(kv_heads=kv_heads), make_states(kv_heads=kv_heads)
    arguments = dict(scaling=0.3, segments=make_segments(), sliding_window=window)
    output, weights = segment_attention(nn.Module(), *ours, None, **arguments)
    expected = masked(*theirs, window)
    torch.testing.assert_close(output, expected)
    assert weights is None
    for result in (output, expected):
        (result * torch.arange(8.0)).sum().backward()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_two_answers_after_one_prompt_equal_two_rows(window):
    """A prompt of five tokens, answers of one and eleven: each as if it stood alone behind the prompt."""
    ours = make_states(), make_states()
    together = make_segments()._replace(branches=branch_off(BOUNDS, (-1, 0, 0)))
    output, _ = segment_attention(nn.Module(), *ours[0], None, segments=together, sliding_window=window)
    expected = []
    for start, end in ((5, 6), (6, 17)):
        alone = [torch.cat([state[:, :, :5], state[:, :, start:end]], dim=2) for state in ours[1]]
        answer, _ = segment_attention(
            nn.Module(), *alone, None, segments=make_segments((0, 5 + end - start)), sliding_window=window
        )
        expected.append(answer[:, 5:])
    torch.testing.assert_close(output[:, 5:], torch.cat(expected, dim=1))
    (output[:, 5:] ** 2).sum().backward()
    (torch.cat(expected, dim=1) ** 2).sum().backward()
    for one, other in zip(*ours, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("follows", [(0, -1, -1), (-1, 2, -1), (-1, 0, 1)])
def test_a_segment_follows_an_earlier_prompt_only(follows):
    with pytest.raises(ValueError, match="an earlier one that follows no other"):
        branch_off(BOUNDS, follows)


def test_keys_of_branches_stand_behind_their_prompt():
    """What the flash kernel gets: for each segment its prompt's positions, then its own."""
    branches = branch_off((0, 2, 3, 5, 6), (-1, 0, 0, -1))
    assert branches.key_positions.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5]
    assert branches.cu_seqlens.tolist() == [0, 2, 5, 9, 10] and branches.longest == 4


def test_no_mask_of_the_row_and_no_repeated_heads_exist():
    """Nothing that grows with the square of the row, or with the number of query heads for keys, is passed on."""
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is F.scaled_dot_product_attention:
                seen.append(([tuple(tensor.shape) for tensor in args], (kwargs or {})["attn_mask"]))
            return function(*args, **(kwargs or {}))

    with Watch():
        segment_attention(nn.Module(), *make_states(), None, segments=make_segments())
    lengths = [5, 1, 11]
    assert seen == [([(1, 6, n, 8), (1, 2, n, 8), (1, 2, n, 8)], None) for n in lengths]


def test_flash_gets_boundaries_and_a_causal_window(monkeypatch):
    """What the kernel of a CUDA device is called with; the kernel itself needs one."""
    calls = []

    def kernel(query, key, value, *borders, **options):
        calls.append((tuple(query.shape), tuple(key.shape), [b if isinstance(b, int) else b.tolist() for b in borders]))
        calls.append(options)
        return torch.zeros_like(query)

    monkeypatch.setattr(attention_module, "varlen_attn", kernel)
    monkeypatch.setattr(attention_module, "_flash_runs", lambda query, dropout: True)
    for window, expected in ((None, (-1, 0)), (3, (2, 0)), (100, (-1, 0))):
        calls.clear()
        states = make_states()
        output, _ = segment_attention(
            nn.Module(), *states, None, scaling=0.3, segments=make_segments(), sliding_window=window
        )
        assert output.shape == (1, 17, 6, 8)
        assert calls == [
            ((17, 6, 8), (17, 2, 8), [list(BOUNDS), list(BOUNDS), 11, 11]),
            {"scale": 0.3, "window_size": expected},
        ]


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_flash_equals_segment_by_segment(window):
    states = [tensor.detach().to("cuda", torch.bfloat16) for tensor in make_states()]
    segments = Segments(BOUNDS, torch.tensor(BOUNDS, dtype=torch.int32, device="cuda"))
    assert attention_module._flash_runs(states[0], 0.0)
    output, _ = segment_attention(nn.Module(), *states, None, scaling=0.3, segments=segments, sliding_window=window)
    expected = masked(*[tensor.float().cpu() for tensor in states], window)
    torch.testing.assert_close(output.float().cpu(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", sorted(LLM_FAMILIES))
def test_every_family_takes_segments(name):
    """Each sample of a row gives the hidden states that it gives alone under transformers' own attention."""
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    windows = dict(sliding_window=4, use_sliding_window=True, max_window_layers=1, pad_token_id=0)
    if name == "qwen3_moe":
        shape |= dict(moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, head_dim=8)
    config = AutoConfig.for_model(name, vocab_size=90, **shape, **heads, **windows)
    llm = AutoModelForCausalLM.from_config(config).eval()
    decoder = getattr(llm, LLM_FAMILIES[name].decoder)
    samples = [torch.randint(0, 90, (1, length)) for length in (5, 1, 11)]
    with torch.no_grad():
        alone = torch.cat([decoder(ids).last_hidden_state for ids in samples], 1)
        attend_to_segments(llm)
        again = torch.cat([decoder(ids).last_hidden_state for ids in samples], 1)
        torch.testing.assert_close(again, alone)  # without segments nothing has changed
        row = torch.cat(samples, 1)
        positions = torch.cat([torch.arange(ids.shape[1]) for ids in samples])[None]
        inputs = dict(position_ids=positions, attention_mask=no_mask(row.device), use_cache=False)
        together = decoder(row, segments=make_segments(), **inputs).last_hidden_state
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        wrong = decoder(row, segments=make_segments((0, 17)), **inputs).last_hidden_state
    assert (wrong - alone).abs().max() > 1e-3


def pack(batch, padding=2):
    """The samples of a padded batch behind each other in one row, with so many tokens of padding at the end."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = range(len(lengths))
    joined = {key: torch.cat([batch[key][row, : lengths[row]] for row in rows]) for key in ("input_ids", "labels")}
    ends = torch.tensor(lengths).cumsum(0)
    return {
        "input_ids": F.pad(joined["input_ids"], (0, padding))[None],
        "labels": F.pad(joined["labels"], (0, padding), value=-100)[None],
        "cu_seqlens": torch.cat([torch.zeros(1), ends]).int(),
        "tiles": batch["tiles"],
        "num_tiles": batch["num_tiles"],
        "sources": batch["sources"],
    }


def test_packed_equals_unpacked_in_loss_and_gradients(toy_base):
    results = []
    for transform in (lambda batch: batch, pack):
        torch.manual_seed(0)
        model = VisionLanguageModel(base=str(toy_base), dtype="float32", freeze_llm=False, freeze_visual_encoder=False)
        loss = run(model.train(), transform(make_batch(model, tiles_of=(2, 0, 1, 3))))["loss"]
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (loss, gradients), (packed_loss, packed_gradients) = results
    torch.testing.assert_close(packed_loss, loss, atol=1e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("tiles_of", [(2, 0, 1), (0, 0)])
def test_a_step_never_asks_the_device(toy_base, tiles_of):
    """Forward and backward run on tensors without content: nothing depends on values that a device holds."""
    model = VisionLanguageModel(base=str(toy_base), dtype="float32", freeze_llm=False).train()
    batch = {**make_batch(model, tiles_of=tiles_of), "loss_weights": torch.rand(len(tiles_of))}
    inputs = model.data_preprocessor(batch)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = {
        "pixel_values": mode.from_tensor(inputs["pixel_values"]),
        "row": torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, inputs["row"]),
    }
    with mode:
        loss = model(**fake, mode="loss", mean_weight=torch.ones(()))["loss"]
        loss.backward()
        with pytest.raises(RuntimeError):
            loss.item()  # the test would see it


def test_without_boundaries_a_pack_would_differ(toy_base):
    """The check above can fail: letting samples see each other changes the loss."""
    model = VisionLanguageModel(base=str(toy_base), dtype="float32").eval()
    packed = pack(make_batch(model, tiles_of=(2, 0, 1, 3)))
    right = run(model, packed)["loss"]
    one_sample = {"cu_seqlens": torch.tensor([0, int(packed["cu_seqlens"][-1])]).int()}
    wrong = run(model, {**packed, **one_sample, "num_tiles": packed["num_tiles"].sum()[None]})["loss"]
    assert abs(right - wrong) > 1e-3
