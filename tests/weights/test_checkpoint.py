"""What training leaves at a path, opened whatever it is, DeepSpeed's directories too; the newest that is whole."""

import os

import pytest
import torch

from tests.engine.forked import train_forked
from tests.small_data import write_dataset
from xtuner_plugins.export.export import export
from xtuner_plugins.weights import manifest, record
from xtuner_plugins.weights.checkpoint import open_checkpoint
from xtuner_plugins.weights.work_dir import newest_checkpoint, read_checkpoint
from xtuner_plugins.weights.writer import write_json
from xtuner_plugins.weights.zero import open_optimizer


def test_weights_alone_and_refusals(toy_base, tmp_path, refused):
    found = open_checkpoint(toy_base)
    assert (found.kind, found.files, len(found.tensors)) == ("weights", [toy_base / "model.safetensors"], 32 + 6 + 27)
    (tmp_path / "adapter").mkdir()
    write_json(tmp_path / "adapter" / "adapter_config.json", {"peft_type": "LORA"})
    weights = {"a": torch.ones(1)}
    for content, words in (
        ({"state_dict": weights, "meta": {"iter": []}}, r"a.pth holds something else .* \(TypeError: .*list"),
        ({"state_dict": weights, "meta": {}}, "a.pth was not written by a training"),
        ([7], "a.pth holds no state dict, whose values are"),
    ):
        torch.save(content, tmp_path / "a.pth")
        refused(words, read_checkpoint, tmp_path / "a.pth")
    refused(r"it holds: a\.pth, adapter", open_checkpoint, tmp_path)
    refused("is a PEFT adapter; .*merge_and_unload", read_checkpoint, tmp_path / "adapter")
    for call in (open_checkpoint, read_checkpoint):
        refused("does not exist", call, tmp_path / "nowhere")
    write_json(tmp_path / record.FILE, {})
    write_json(tmp_path / manifest.FILE, {"files": [record.FILE]})
    refused(f"{manifest.FILE} holds something else than it should", open_checkpoint, tmp_path)


def write(path, seconds=0):
    """A checkpoint of step 7; ``seconds`` is its age."""
    torch.save({"meta": {"iter": 7}, "state_dict": {"w": torch.ones(3000)}, "optimizer": {}}, path)
    os.utime(path, (1e9 - seconds, 1e9 - seconds))
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    """The pointer decides, by its name alone; without it the time of writing. Broken ones are passed over."""
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "missing") is None
    older, newer = write(tmp_path / "iter_900.pth", seconds=100), write(tmp_path / "iter_4.pth")
    torch.save({"meta": {"iter": 8}, "state_dict": {"w": torch.ones(1)}}, tmp_path / "other.pth")
    assert read_checkpoint(tmp_path / "other.pth") == {"iter": 8, "has_optimizer": False, "record": None}
    assert newest_checkpoint(tmp_path) == newer
    assert read_checkpoint(newer) == {"iter": 7, "has_optimizer": True, "record": None}
    (tmp_path / "last_checkpoint").write_text("moved/from/elsewhere/iter_900.pth")
    assert newest_checkpoint(tmp_path) == older
    for share in (0.99, 0.5, 0.0):
        os.truncate(older, int(older.stat().st_size * share))
        assert newest_checkpoint(tmp_path) == newer


@pytest.mark.slow
@pytest.mark.parametrize("stage, leaf", [(1, "lora"), (2, "full"), (3, "lora")])
def test_real_directories(toy_base, tmp_path, stage, leaf):
    """Two ranks train, and DeepSpeed's own script is asked for the weights in float32; they are exported, too."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    case = dict(processes=2, config=f"configs/toy/toy_finetune_{leaf}.py", deepspeed=f"deepspeed_zero{stage}")
    run = train_forked(tmp_path / "run", toy_base, write_dataset(tmp_path / "data"), **case)
    assert run.ok, run.output[-3000:]
    opened = open_checkpoint(run.work_dir / "iter_4.pth")
    theirs = get_fp32_state_dict_from_zero_checkpoint(run.work_dir, "iter_4.pth", exclude_frozen_parameters=True)
    assert opened.kind == "deepspeed" and opened.run["record"] and theirs
    for name, value in theirs.items():
        read = opened.tensors[name].read()
        assert read.dtype == torch.float32 and torch.equal(read, value), name
    done = export(None, opened.path, tmp_path / "out")
    assert bool(done["num_merged"]) == (leaf == "lora") and (tmp_path / "out" / "config.json").is_file()


SHAPES = [{"a": torch.Size([2]), "d": torch.Size([1, 2])}, {"b": torch.Size([3])}]
# By rank; at stages 1 and 2 a vector per group, padded, and at stage 3 the pieces of each parameter.
VECTORS = {
    1: [[[0, 1], [4, 5]], [[2, 3], [6, -1]]],
    2: [[[0, 1, 2, 3], [4, 5]], [[-1, -1, -1], [6, -1]]],
    3: [[[0, 2], [4, 5]], [[1, 3], [6, -1]]],
}


def write_zero(folder, stage, vectors, shapes=SHAPES, count=None, **others):
    """The files of a directory; moments are the weights again, and ``c`` is frozen."""
    folder.mkdir()
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    model = {"module": {"buffer": torch.ones(2)}, "param_shapes": shapes, "shared_params": {"tied": "a"}}
    model["frozen_param_shapes"] = {"c": torch.Size([2])}
    for rank, flat in enumerate(vectors):
        state = {"zero_stage": stage, "partition_count": count or len(vectors), key: list(map(torch.Tensor, flat))}
        moments = {n: {"step": torch.tensor(n + 5.0), "exp_avg": each} for n, each in enumerate(state[key])}
        held = {"state": moments, "param_groups": [{"params": [n], "lr": n} for n in moments]}
        state["optimizer_state_dict" if stage == 3 else "base_optimizer_state"] = held
        torch.save({"optimizer_state_dict": state}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        model["frozen_param_fragments"] = {"c": torch.tensor([7.0 + rank] if stage == 3 else [7.0, 8.0])}
        if stage == 3 or rank == 0:
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(model | others, folder / f"{prefix}mp_rank_00_model_states.pt")
    return folder


def test_layouts(tmp_path):
    """The order of ranks is that of their numbers."""
    expected = {"a": [0, 1], "d": [[2, 3]], "b": [4, 5, 6]}
    for stage, vectors in VECTORS.items():
        folder = write_zero(tmp_path / str(stage), stage, vectors)
        read = {name: tensor.read().tolist() for name, tensor in open_checkpoint(folder).tensors.items()}
        assert stage == 3 or read.pop("buffer") == [1, 1]
        assert read == {**expected, "c": [7, 8], "tied": [0, 1]}
        states, options = open_optimizer(folder)
        assert {name: state["exp_avg"].read().tolist() for name, state in states.items()} == expected
        assert {name: state["step"].item() for name, state in states.items()} == {"a": 5, "d": 5, "b": 6}
        assert states["a"]["step"] is not states["d"]["step"]  # each is counted up for itself
        assert {name: each["lr"] for name, each in options.items()} == {"a": 0, "d": 0, "b": 1}
    (tmp_path / "latest").write_text("2")
    assert open_checkpoint(tmp_path).path == tmp_path / "2"
    many = write_zero(tmp_path / "many", 3, [[[n]] for n in range(11)], [{"a": torch.Size([11])}])
    assert open_checkpoint(many).tensors["a"].read().tolist() == list(range(11))


def test_what_is_no_whole_save(tmp_path, refused):
    short, long = [{"a": torch.Size([2])}], [{"a": torch.Size([2, 2]), "b": torch.Size([30])}]
    table = [
        (2, dict(shapes=short), r"\d+ numbers for parameters of \d+; files of different saves"),
        (3, dict(shapes=[{"a": torch.Size([6])}]), r"4 numbers for parameters of \d+; files of different saves"),
        (1, dict(shapes=long), "the numbers end before b"),
        (3, dict(count=3), r"saved by 3 ranks but holds 2 \*_optim_states"),
        (3, dict(param_shapes=[3]), "holds something else than it should"),
        (1, dict(frozen_param_fragments={}), "the numbers of the frozen parameter c are missing"),
    ]
    for number, (stage, changes, words) in enumerate(table):
        refused(words, open_checkpoint, write_zero(tmp_path / str(number), stage, VECTORS[stage], **changes))
    whole = write_zero(tmp_path / "whole", 3, VECTORS[3])
    (tmp_path / "latest").write_text("../whole")
    refused("names '../whole', but", open_checkpoint, tmp_path)
    (whole / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    refused(r"saved by 2 ranks but holds 1 \*_model_states", open_checkpoint, whole)
    for path in whole.glob("*optim_states.pt"):
        path.unlink()
    refused(r"ZeRO-3 checkpoint without \*_optim_states.pt", open_checkpoint, whole)
    torch.save({"module": {}}, tmp_path / "mp_rank_00_model_states.pt")
    refused("holds no ZeRO optimizer state", open_optimizer, tmp_path)
