"""The importer of XTuner's configs as its users meet it: names, files, refusals."""

from pathlib import Path

import pytest
from xtuner.configs import cfgs_name_path

from tests.cli.xtuner_cases import INTERNVL
from tests.tools.test_refusals import run
from xtuner_plugins.cli.from_xtuner import find_xtuner_config, import_config
from xtuner_plugins.settings import ConfigError, load_config


def test_names_are_those_of_xtuner():
    for name in INTERNVL:
        assert find_xtuner_config(name) == cfgs_name_path[name]


REFUSED = [
    (["internvl_v2_internlm2_8b_lora_finetune"], "does not exist; did you mean internvl_v2_internlm2"),
    (
        ["llava_internlm_chat_7b_clip_vit_large_p14_336_e1_gpu8_pretrain", "out.py"],
        "internlm/internlm-chat-7b is prompted with internlm_chat, which no template in",
    ),
    (
        ["internlm2_7b_qlora_alpaca_e3", "out.py"],
        "trains SupervisedFinetune; XTuner's configs of InternVL_V1_5 and LLaVAModel",
    ),
    (["finetune_lora.py"], "config finetune_lora.py does not exist"),
    (["internvl_v2_internlm2_2b_finetune", "out.txt"], "a config is a Python file; name it out.py"),
]


@pytest.mark.parametrize("words, message", REFUSED, ids=[words[-1] for words, _ in REFUSED])
def test_wrong_inputs_are_refused_in_one_line(words, message, tmp_path):
    status, lines, imported = run("import_xtuner_config.py", *words, cwd=tmp_path)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert imported == [] and list(tmp_path.iterdir()) == []


def test_the_tool_writes_names_and_replaces_nothing(tmp_path):
    name = "internvl_v2_phi3_4b_qlora_finetune"
    status, lines, imported = run("import_xtuner_config.py", name, cwd=tmp_path)
    assert (status, imported) == (0, []) and all(line.endswith("does not exist yet") for line in lines)
    assert load_config(str(tmp_path / f"{name}.py")).train_dataloader.batch_size == 8
    status, lines, _ = run("import_xtuner_config.py", name, cwd=tmp_path)
    assert (status, lines) == (2, [f"error: {name}.py exists; --force replaces it"])
    assert run("import_xtuner_config.py", name, "--force", cwd=tmp_path)[0] == 0
    status, lines, _ = run("import_xtuner_config.py", f"{name}.py", "--force", cwd=tmp_path)
    assert (status, lines) == (2, [f"error: {name}.py is the config itself; name another OUT"])


def test_a_config_of_ours_is_refused(tmp_path):
    ours = Path(__file__).resolve().parents[2] / "configs/finetune_lora.py"
    with pytest.raises(ConfigError, match="is no config of XTuner's own"):
        import_config(str(ours), tmp_path / "out.py")
