"""The quick start: a failing command ends it, its verdict tells right from wrong, earlier results are kept."""

import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import pytest

from tests.conftest import HANGS_AFTER, ROOT
from xtuner_plugins.toy import preference, quickstart
from xtuner_plugins.toy.quickstart import StageError, keep_earlier, summarize, verdict

WAYS = {quickstart: ("tiling", "one tile", quickstart.CONTROL), preference: (preference.BEFORE, preference.AFTER)}


def test_a_failing_command_ends_the_chain_with_its_last_words(tmp_path, capfd):
    chain = quickstart.Chain(tmp_path, tmp_path)
    chain.run("fine", ["-c", "print('wrote it'); print('What this run trains:')"])
    said = capfd.readouterr().out
    assert "wrote it" in said and "What" not in said.replace("print('What", "") and chain.seconds["fine"] < HANGS_AFTER
    result = chain.keep({"table": "x"})
    assert json.loads((tmp_path / "results.json").read_text()) == result and list(result["seconds"]) == ["fine", "all"]
    with pytest.raises(StageError, match="exit status 3") as caught:
        chain.run("bad", ["-c", "import time; time.sleep(60)"], ["-c", "print('why'); raise SystemExit(3)"])
    assert "why" in str(caught.value) and quickstart.progress_line("error: no such file\n") == "error: no such file"


def test_verdict_sees_a_wrong_number_and_a_differing_export():
    questions = [{"id": str(i), "kind": "number", "answer": "47"} for i in range(10)]
    questions[0] |= {"kind": "colour", "answer": "red"}
    right = {q["id"]: f" {q['answer'].title()}. " for q in questions}
    wrong = {**dict.fromkeys(right, "4"), "0": "red"}
    good, bad = {"tiling": right, "one tile": wrong}, {"tiling": wrong, "one tile": wrong}
    differing = {**bad, "tiling": {**wrong, "3": "12"}}
    for trained, exported, control, reached in (
        (bad, differing, wrong, [False, False, False, False]),
        (good, good, right, [True, True, False, True]),  # tiles gained nothing
        ({**good, "one tile": right}, good, wrong, [True, False, True, False]),
        (good, good, wrong, [True, True, True, True]),
    ):
        result = summarize(questions, trained, exported, control)
        assert [is_reached for is_reached, _ in verdict(result)] == reached
    number, colour = (line.split() for line in result["table"].splitlines()[1:])
    assert number[:4] == ["number", "yes", "9", "100.0%"] and colour[:5] == ["colour", "no", "1", "100.0%", "100.0%"]


# Commands with some words shortened: W is a demo's folder, Q that of the quick start.
SHORT = {f"{quickstart.CLEAN_PROCESS.parent}/": "", "tools/train.py": "TRAIN", "tools/convert_to_official.py": "EXPORT"}
SHORT |= {"data/test.jsonl W/data/images": "ASKED", "configs/toy/toy_": "C/", "xtuner_plugins.toy": "TOY"}
COMMANDS = {
    quickstart: """-m TOY.data --out W/data --scale 0.5 --seed 3
-m TOY.pretrain vision --out W/parts/vision --scale 0.5 --seed 3
-m TOY.pretrain llm --out W/parts/llm --scale 0.5 --seed 3
tools/build_base_model.py --vision W/parts/vision --llm W/parts/llm --out W/base --max-tiles 6 --dtype float32
tools/check_data.py C/pretrain_mlp.py
TRAIN C/pretrain_mlp.py --seed 3 --work-dir W/runs/pretrain_mlp
TRAIN C/pretrain_mlp.py --seed 3 --work-dir W/control/runs/pretrain_mlp --set max_tiles=1
EXPORT C/pretrain_mlp.py W/runs/pretrain_mlp W/pretrain_mlp
EXPORT W/control/runs/pretrain_mlp/toy_pretrain_mlp.py W/control/runs/pretrain_mlp W/control/pretrain_mlp
TRAIN C/finetune_full.py --seed 3 --work-dir W/runs/finetune_full
TRAIN C/finetune_full.py --seed 3 --work-dir W/control/runs/finetune_full --set max_tiles=1 base=W/control/pretrain_mlp
EXPORT C/finetune_full.py W/runs/finetune_full W/model
-m TOY.evaluate W/runs/finetune_full W/ASKED --out W/answers_trained.json
-I clean_process.py W/model W/ASKED W/answers_exported.json
-m TOY.evaluate W/control/runs/finetune_full W/ASKED --modes one tile --out W/answers_control.json""",
    preference: """-m TOY.data --pairs --out W/data --scale 0.5 --seed 3
tools/check_data.py C/finetune_mpo_full.py
TRAIN C/finetune_mpo_full.py --seed 3 --work-dir W/runs/finetune_mpo_full
EXPORT C/finetune_mpo_full.py W/runs/finetune_mpo_full W/model
-m TOY.evaluate Q/model W/ASKED --modes tiling --out W/answers_before.json
-m TOY.evaluate W/model W/ASKED --modes tiling --out W/answers_after.json""",
}


def test_commands_of_the_demos(tmp_path):
    """Some would run as well if they were wrong. The demos end here where they would read the answers."""
    for demo, expected in COMMANDS.items():
        chain = mock.Mock(root=tmp_path, out=tmp_path)
        with pytest.raises(FileNotFoundError):
            demo.run_chain(chain, 0.5, 3)
        commands = [command for call in chain.run.call_args_list for command in call.args[1:]]
        text = "\n".join(" ".join(map(str, command)) for command in commands).replace(f"{tmp_path}/", "")
        for path, short in {str(quickstart.OUT): "Q", str(demo.OUT): "W", **SHORT}.items():
            text = text.replace(path, short)
        assert text == expected


def test_earlier_results_are_kept_each_under_its_own_name(tmp_path):
    out = tmp_path / "quickstart"
    assert keep_earlier(out) is None
    for number in (1, 2):
        out.mkdir()
        assert keep_earlier(out) == tmp_path / f"quickstart.{number}" and not out.exists()
    out.symlink_to(tmp_path / "quickstart.1")  # a link is renamed, not what it leads to
    assert keep_earlier(out).is_symlink() and (tmp_path / "quickstart.1").is_dir()


@pytest.mark.release
def test_whole_chain_in_short(tmp_path):
    """The real commands from end to end, on a copy of the sources so that a user's own run stays."""
    for folder in ("configs", "tools", "xtuner_plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for demo in COMMANDS:
        command = [sys.executable, "-m", demo.__name__, "--scale", "0.02"]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_AFTER)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        out = tmp_path / demo.OUT
        result = json.loads((out / "results.json").read_text())
        assert tuple(result["accuracy"]) == WAYS[demo] and "needs resolution" in done.stdout
        assert result.get("num_answers_that_differ", 0) == 0 < sum(result["num_asked"].values())
        for name in ("losses.png", "model/config.json", "model/modeling_internvl_chat.py"):
            assert (out / name).stat().st_size > 0
