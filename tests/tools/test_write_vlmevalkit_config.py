"""The command that writes VLMEvalKit's config, as a user gets it."""

import json


def test_it_writes_a_config(run_tool, toy_base, tmp_path):
    out = tmp_path / "mine.json"
    arguments = [toy_base, out, "--name", "mine", "--data", "MMVet", "OCRBench", "--max-new-tokens", "256"]
    done = run_tool("tools/write_vlmevalkit_config.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {out}: mine on MMVet, OCRBench\n") and "run.py --config" in done.stdout
    assert json.loads(out.read_text())["model"]["mine"]["max_new_tokens"] == 256
    again = run_tool("tools/write_vlmevalkit_config.py", *arguments)
    assert again.returncode == 1 and again.stderr == f"error: {out} is there already; give another name, or --force\n"
