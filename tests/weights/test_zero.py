"""DeepSpeed directories: real ones, made by DeepSpeed on the CPU with one and two ranks, read without it."""

import pytest
import torch

from tests.weights.training import chat_inputs, logits, run_ranks
from xtuner_plugins.export.export import export
from xtuner_plugins.weights.checkpoint import open_checkpoint
from xtuner_plugins.weights.loader import load_model
from xtuner_plugins.weights.partition import over_ranks, partition_dtype
from xtuner_plugins.weights.reading import CheckpointError
from xtuner_plugins.weights.zero import open_optimizer


@pytest.mark.slow
@pytest.mark.parametrize("stage, ranks, lora", [(1, 2, True), (2, 2, False), (3, 2, False), (3, 1, True)])
def test_real_directories(toy_base, tmp_path, stage, ranks, lora):
    run_ranks("tests.weights.zero_case", stage, toy_base, tmp_path / "iter_1.pth", int(lora), ranks=ranks)
    opened = open_checkpoint(tmp_path / "iter_1.pth")
    assert opened.kind == "deepspeed" and opened.record is not None
    for name, value in torch.load(tmp_path / "reference.pt", weights_only=True).items():
        read = opened.tensors[name].read()
        assert read.dtype == torch.float32 and torch.equal(read, value), name
    assert export(None, tmp_path, tmp_path / "out")["num_merged"] == 6 * lora  # by the file `latest`
    if stage == 3:
        model = load_model(toy_base, dtype=torch.float32)
        model.img_context_token_id = 508
        # The same weights to the bit, the same arithmetic, though no rank ever held the model whole.
        assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(model, chat_inputs(model)))


SHAPES = [{"a": torch.Size([2, 2])}, {"b": torch.Size([3])}]
# By rank; at stages 1 and 2 a vector per group, padded, and at stage 3 the pieces of each parameter.
VECTORS = {
    1: [[[0, 1], [4, 5]], [[2, 3], [6, -1]]],
    2: [[[0, 1, 2, 3], [4, 5]], [[-1, -1, -1], [6, -1]]],
    3: [[[0, 1], [4, 5]], [[2, 3], [6, -1]]],
}


def write(folder, stage, vectors, shapes=SHAPES, count=None, **frozen):
    """The files of a directory, without the optimizer's moments."""
    folder.mkdir()
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    model = {"module": {"buffer": torch.ones(2)}, "param_shapes": shapes, "shared_params": {"tied": "a"}, **frozen}
    for rank, flat in enumerate(vectors):
        state = {"zero_stage": stage, "partition_count": count or len(vectors), key: list(map(torch.Tensor, flat))}
        torch.save({"optimizer_state_dict": state}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3 or rank == 0:
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(model, folder / f"{prefix}mp_rank_00_model_states.pt")
    return folder


def test_layouts(tmp_path):
    """The order of ranks is that of their numbers; a frozen parameter's pieces are joined at stage 3 alone."""
    frozen = {"frozen_param_shapes": {"c": torch.Size([2])}, "frozen_param_fragments": {"c": torch.tensor([7.0, 8.0])}}
    for stage, vectors in VECTORS.items():
        folder = write(tmp_path / str(stage), stage, vectors, **frozen)
        opened = {name: tensor.read().tolist() for name, tensor in open_checkpoint(folder).tensors.items()}
        assert stage == 3 or opened.pop("buffer") == [1, 1]
        assert opened == {"a": [[0, 1], [2, 3]], "b": [4, 5, 6], "c": [7, 8], "tied": [[0, 1], [2, 3]]}
    ten = write(tmp_path / "ten", 3, [[[n], [n]] for n in range(11)], [{"a": torch.Size([11]), "b": torch.Size([11])}])
    assert open_checkpoint(ten).tensors["b"].read().tolist() == list(range(11))


def test_what_is_no_whole_save(tmp_path):
    short, long = [{"a": torch.Size([2])}], [{"a": torch.Size([2, 2]), "b": torch.Size([30])}]
    missing = {"frozen_param_shapes": {"c": torch.Size([2])}}
    table = [
        *((stage, dict(shapes=short), "numbers are there, the parameters have .* different saves") for stage in (2, 3)),
        *((stage, dict(shapes=long), "the numbers end before b") for stage in (1, 3)),
        *((stage, dict(count=3), r"saved by 3 ranks but holds 2 \*_optim_states") for stage in (1, 3)),
        (1, missing, "the frozen parameter c is listed but its numbers are missing"),
    ]
    for number, (stage, changes, words) in enumerate(table):
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(write(tmp_path / str(number), stage, VECTORS[stage], **changes))
    whole = write(tmp_path / "whole", 3, VECTORS[3])
    (tmp_path / "latest").write_text("../whole")
    with pytest.raises(CheckpointError, match="names '../whole', but"):
        open_checkpoint(tmp_path)
    for path in whole.glob("*optim_states.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"ZeRO-3 checkpoint without \*_optim_states.pt"):
        open_checkpoint(whole)
    torch.save({"module": {}}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="holds no ZeRO optimizer state"):
        open_optimizer(tmp_path)


def test_the_dtype_that_deepspeed_computes_in():
    on, off = {"enabled": True}, {"enabled": False}
    table = [({"bf16": on}, torch.bfloat16), ({"fp16": on, "bf16": off}, torch.float16), ({"bf16": off}, torch.float32)]
    for config, dtype in (*table, ({}, torch.float32)):
        assert partition_dtype(config) == dtype
    with pytest.raises(ValueError, match="stage is 2"):
        over_ranks({"zero_optimization": {"stage": 2}})
