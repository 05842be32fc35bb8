"""Verification passes for true exports and fails loudly for everything else."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.training import SETTINGS, make_model, save_pth, write_config
from xtuner_plugins.checkpoints.export import export
from xtuner_plugins.checkpoints.io.reader import CheckpointError, read_json
from xtuner_plugins.checkpoints.io.writer import write_json
from xtuner_plugins.inference import verify as verify_module
from xtuner_plugins.inference.verify import TOLERANCE_CAST, TOLERANCE_FP32, verify


@pytest.fixture(scope="module")
def run(toy_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = make_model(toy_base, **SETTINGS["both_loras"])
    config = write_config(folder / "c.py", toy_base, **SETTINGS["both_loras"])
    checkpoint = save_pth(model, folder / "iter_1.pth")
    export(config, checkpoint, folder / "out")
    return config, checkpoint, folder / "out", model.model


def test_true_export(run):
    report = verify(*run[:3])
    assert [c.name for c in report.cases] == ["text only", "one tile", "many tiles", "two images"]
    assert report.tolerance == TOLERANCE_FP32 and all(c.same_answer for c in report.cases)
    assert "same answer" in str(report)


@pytest.mark.slow
def test_cast_and_native_exports(run, tmp_path):
    config, checkpoint, _, model = run
    export(config, checkpoint, tmp_path / "bf16", dtype="bfloat16")
    report = verify(config, checkpoint, tmp_path / "bf16", model=model)
    assert report.tolerance == TOLERANCE_CAST and max(c.gap for c in report.cases) > 1e-4  # a real cast happened
    export(config, checkpoint, tmp_path / "hf", format="hf")
    assert verify(config, checkpoint, tmp_path / "hf").tolerance == TOLERANCE_FP32


def tampered(run, tmp_path, change):
    shutil.copytree(run[2], tmp_path / "bad")
    held = load_file(tmp_path / "bad" / "model.safetensors")
    change(held)
    save_file(held, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "bad"


@pytest.mark.slow
def test_one_changed_tensor(run, tmp_path):
    def change(held):
        held["vision_model.encoder.layers.1.ls2"] *= 1.01

    bad = tampered(run, tmp_path, change)
    with pytest.raises(CheckpointError, match="verification failed, case one tile: logits differ by"):
        verify(*run[:2], bad)


@pytest.mark.slow
def test_code_in_the_export_that_fails(run, tmp_path):
    shutil.copytree(run[2], tmp_path / "bad")
    path = tmp_path / "bad" / "modeling_internvl_chat.py"
    path.write_text(path.read_text() + "\nraise RuntimeError('broken on purpose')\n")
    with pytest.raises(CheckpointError, match="clean process can't use .*broken on purpose"):
        verify(*run[:2], tmp_path / "bad", trust_remote_code=True)


class TestForeignCode:
    """Python that came with the base is not run unless somebody asks for it."""

    @pytest.fixture()
    def base(self, toy_base, tmp_path):
        base = tmp_path / "base"
        shutil.copytree(toy_base, base)
        (base / "extra.py").write_text(f"file = open({str(tmp_path / 'has_run')!r}, 'w')\n")
        with open(base / "modeling_internvl_chat.py", "a") as file:  # transformers takes along what this one imports
            file.write("\nfrom .extra import file\n")
        return base

    def test_the_tool_refuses_before_it_writes(self, run_tool, base, run, tmp_path):
        config = write_config(tmp_path / "c.py", base, **SETTINGS["both_loras"])
        command = ("tools/convert_to_official.py", config, run[1], tmp_path / "out", "--verify")
        done = run_tool(*command)
        assert done.returncode == 1, done.stdout
        for said in (
            "error: --verify would run Python",
            "modeling_internvl_chat.py",
            "--trust-remote-code",
            "--code ours",
        ):
            assert said in done.stderr
        assert not (tmp_path / "out").exists() and not (tmp_path / "has_run").exists()

    @pytest.mark.slow
    def test_the_tool_runs_it_for_who_asks(self, run_tool, base, run, tmp_path):
        config = write_config(tmp_path / "c.py", base, **SETTINGS["both_loras"])
        command = ("tools/convert_to_official.py", config, run[1], tmp_path / "out", "--verify", "--trust-remote-code")
        done = run_tool(*command)
        assert done.returncode == 0 and (tmp_path / "has_run").exists(), done.stderr

    @pytest.mark.parametrize(
        "change",
        [
            lambda out: (out / "extra.py").write_text(""),
            lambda out: ((out / "sub").mkdir(), (out / "sub" / "conversation.py").write_text("")),
            lambda out: write_json(out / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil/repo--a.B"]}}),
        ],
    )
    def test_whatever_would_run_is_named(self, toy_base, run, tmp_path, change):
        shutil.copytree(run[2], tmp_path / "bad")
        change(tmp_path / "bad")
        with pytest.raises(CheckpointError, match="extra.py|sub/conversation.py|evil/repo--a.B"):
            verify(*run[:2], tmp_path / "bad")


@pytest.mark.slow
def test_tokenizer_of_another_size(run, tmp_path):
    shutil.copytree(run[2], tmp_path / "bad")
    state = read_json(tmp_path / "bad" / "tokenizer.json")
    state["model"]["merges"] = state["model"]["merges"][:100]
    write_json(tmp_path / "bad" / "tokenizer.json", state)
    with pytest.raises(CheckpointError, match="tokenizer gives other ids"):
        verify(*run[:2], tmp_path / "bad")


class TestCompare:
    """The rules, without a process."""

    def result(self, **changes):
        scores = torch.tensor([[3.0, 1.0, 2.999]])
        return {"pixels": torch.ones(1), "logits": torch.ones(2, 3), "answer": [0], "scores": scores, **changes}

    def test_pixels(self):
        with pytest.raises(CheckpointError, match="tiles differ"):
            verify_module._compare("x", self.result(), self.result(pixels=torch.zeros(1)), 1.0)

    def test_nan(self):
        with pytest.raises(CheckpointError, match="logits differ by nan"):
            verify_module._compare("x", self.result(), self.result(logits=torch.full((2, 3), torch.nan)), 1.0)

    def test_answers(self):
        tie = verify_module._compare("x", self.result(), self.result(answer=[2]), 0.01)
        assert not tie.same_answer and "1.0e-03 apart" in tie.note
        for tolerance, other in ((0.01, [1]), (TOLERANCE_FP32, [2]), (0.01, [0, 1])):
            with pytest.raises(CheckpointError, match="greedy answers part"):
                verify_module._compare("x", self.result(), self.result(answer=other), tolerance)
