"""Verification passes for true exports of each kind and fails for one changed byte, row, file or rule."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.training import LORA, SETTINGS, make_model, save_pth, write_config
from xtuner_plugins.export import export, trained
from xtuner_plugins.inference import verify as module
from xtuner_plugins.inference.verify import verify
from xtuner_plugins.inference.verify_tensors import compare_tensors
from xtuner_plugins.weights import manifest, model_view
from xtuner_plugins.weights.lazy import Cast
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json

TOKENS = {**LORA, "target_modules": ["q_proj"], "trainable_token_indices": [3, 9]}
EVERY_ADAPTER = {
    "lora": LORA,
    "rslora": {**LORA, "use_rslora": True},
    "dora": {**LORA, "use_dora": True},
}


@pytest.fixture(scope="module")
def job(toy_base, tmp_path_factory):
    """Makes the export of a run with some settings; keyword arguments as for `prepare`."""
    made = {}

    def make(settings, **choices):
        if str(settings) not in made:
            folder = tmp_path_factory.mktemp("run")
            checkpoint = save_pth(make_model(toy_base, **settings), folder / "iter_1.pth")
            made[str(settings)] = write_config(folder / "c.py", toy_base, **settings), checkpoint
        return export.prepare(*made[str(settings)], **choices)

    return make


@pytest.fixture(scope="module")
def written(job, tmp_path_factory):
    """A job with both LoRAs and its export in bfloat16, in shards."""
    out = tmp_path_factory.mktemp("written") / "out"
    held = job(SETTINGS["both_loras"], dtype="bfloat16")
    export.write(held, out, max_shard_size="300KB")
    return held, out


@pytest.mark.parametrize("name", SETTINGS)
def test_tensors_of_each_run(job, name, tmp_path):
    held = job(SETTINGS[name])
    export.write(held, tmp_path / "out")
    changed = {part: count for part, (count, _) in compare_tensors(held, tmp_path / "out").items()}
    vision, language = {"full": (32, 27), "lora": (0, 6), "both_loras": (4, 6)}.get(name, (0, 0))
    assert changed == {"vision_model": vision, "mlp1": 6, "language_model": language}


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("name", EVERY_ADAPTER)
def test_tensors_of_each_adapter(job, name, dtype, tmp_path):
    held = job(dict(llm_lora=EVERY_ADAPTER[name]), dtype=dtype)
    export.write(held, tmp_path / "out")
    compare_tensors(held, tmp_path / "out")
    held.plan.lora_configs["language_model"].lora_alpha *= 1.01
    with pytest.raises(CheckpointError, match="not base . scale x B A within one rounding"):
        compare_tensors(held, tmp_path / "out")


def renewed(out):
    """The manifest again says what the files are: whoever changes one can do that."""
    told = read_json(out / manifest.FILE)
    told["files"] = {name: manifest.digest(out / name) for name in told["files"] if (out / name).is_file()}
    write_json(out / manifest.FILE, told)


def changed_json(value):
    """The first number, text or truth in a JSON value changed."""
    if isinstance(value, dict):
        key = next(iter(value))
        return {**value, key: changed_json(value[key])}
    if isinstance(value, list):
        return [changed_json(value[0]), *value[1:]] if value else [1]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else f"{value}x"


@pytest.mark.parametrize("format", ["official", "hf"])
def test_every_file_that_ships(job, format, tmp_path):
    """One change each, the manifest renewed: all are seen, and so is a file too many or too few."""
    held, out = job(SETTINGS["both_loras"], format=format), tmp_path / "out"
    export.write(held, out, max_shard_size="300KB")
    module.compare_files(held, out)
    small = [path for path in sorted(out.iterdir()) if path.suffix != ".safetensors"]
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"} < {
        path.name for path in small
    }
    for path in small:
        before, told = path.read_bytes(), (out / manifest.FILE).read_bytes()
        if path.suffix == ".json":
            write_json(path, changed_json(json.loads(before)))
        else:
            path.write_bytes(before + b"\n")
        renewed(out)
        with pytest.raises(CheckpointError, match=f"{path.name}.*not what the export writes"):
            module.compare_files(held, out)
        path.write_bytes(before)
        (out / manifest.FILE).write_bytes(told)
    (out / "extra.py").write_text("print('runs')")
    with pytest.raises(CheckpointError, match="extra.py"):
        module.compare_files(held, out)
    (out / "extra.py").unlink()
    (out / "deep").mkdir()
    shutil.copy(out / "tokenizer.json", out / "deep")
    with pytest.raises(CheckpointError, match="deep/tokenizer.json"):
        module.compare_files(held, out)
    (out / "deep/tokenizer.json").unlink()
    (out / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer_config.json"):
        module.compare_files(held, out)


def test_manifest_is_asked_where_a_directory_is_opened(written, tmp_path):
    out = shutil.copytree(written[1], tmp_path / "out")
    model_view.open_model(out)
    write_json(out / "generation_config.json", {"eos_token_id": 5})
    with pytest.raises(CheckpointError, match="not as it was exported: generation_config.json changed"):
        model_view.open_model(out)
    renewed(out)
    model_view.open_model(out)
    shard = sorted(out.glob("*.safetensors"))[1]
    with open(shard, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    model_view.open_model(out)  # weights are not read there
    with pytest.raises(CheckpointError, match=f"verification failed: .*{shard.name} changed.*stands, but don't use it"):
        verify(written[0], out)
    (out / manifest.FILE).unlink()
    model_view.open_model(out)
    write_json(out / manifest.FILE, {"files": ["config.json"]})
    with pytest.raises(CheckpointError, match="files is no object"):
        model_view.open_model(out)


DOWN = "language_model.model.layers.1.mlp.down_proj.weight"
UP = "language_model.model.layers.1.mlp.up_proj.weight"


def scaled(name, factor=1.01):
    return lambda held: {**held, name: (held[name].float() * factor).bfloat16()}


def flipped(name):
    def change(held):
        held[name].view(torch.int16)[-1] ^= 1
        return held

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (scaled(DOWN), "down_proj.weight, rows 0 to 64: not base . scale x B A within one rounding"),
        (scaled(UP), "up_proj.weight, rows 0 to 128: other numbers than were trained"),
        (scaled("vision_model.encoder.layers.1.ls2"), "ls2, rows .*other numbers"),
        (flipped(UP), "up_proj.weight.*other numbers"),
        (flipped("mlp1.3.bias"), "mlp1.3.bias.*other numbers"),
        (lambda held: {**held, DOWN: torch.full_like(held[DOWN], torch.nan)}, "down_proj.*not base"),
        (lambda held: {name: t for name, t in held.items() if name != UP}, "lack or add 1 tensors: .*up_proj"),
        (lambda held: {**held, UP: held[UP].float()}, r"up_proj.weight is float32.*bfloat16.*was due"),
    ],
)
def test_a_changed_tensor(written, tmp_path, change, words):
    held, out = written
    shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {name: tensor for shard in out.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    save_file(change(tensors), tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        compare_tensors(held, tmp_path / "out")


def test_a_trained_part_that_is_the_bases(job, toy_base, tmp_path):
    model = make_model(toy_base)
    base = load_file(toy_base / "model.safetensors")
    model.model.mlp1.load_state_dict({k[5:]: v for k, v in base.items() if k.startswith("mlp1.")})
    config = write_config(tmp_path / "c.py", toy_base)
    held = export.prepare(config, save_pth(model, tmp_path / "iter_1.pth"))
    export.write(held, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no tensor of mlp1 differs from the base, though it was trained"):
        compare_tensors(held, tmp_path / "out")


def test_token_rows_and_rows_of_processors(job, tmp_path):
    """hf adds a row for its video token: it holds zeros, or the export is wrong."""
    held, out = job(dict(llm_lora=TOKENS), format="hf"), tmp_path / "out"
    export.write(held, out)
    assert compare_tensors(held, out)["language_model"] == (3, 27)  # two q_proj and the embedding
    tensors = load_file(out / "model.safetensors")
    name = "language_model.model.embed_tokens.weight"
    for row, words in ((9, "embed_tokens.weight, rows.*other numbers"), (-1, "tokens that were not trained")):
        changed = {**tensors, name: tensors[name].clone()}
        changed[name][row] += 1
        save_file(changed, out / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=words):
            compare_tensors(held, out)


class TestAnswers:
    """Live, merged, cast and opened: one answering model, three that must give its logits."""

    @pytest.fixture(scope="class")
    def asked(self, job, tmp_path_factory):
        folder, held = tmp_path_factory.mktemp("asked"), job(SETTINGS["both_loras"], dtype="bfloat16")
        return module.ask(held, folder), folder

    def test_what_is_asked(self, asked):
        cases, _ = asked
        assert [len(case.pixels) if case.pixels is not None else 0 for case in cases] == [0, 1, 7, 10]
        for case in cases:
            assert set(case.logits) == {"live", "merged", "cast"} and 0 < case.noise < 1e-4
            assert 0 < case.gap("live", case.logits["merged"], "") < case.allowed()
            with pytest.raises(CheckpointError, match=f"case {case.name}: merging moves logits by"):
                case.gap("live", case.logits["cast"], "merging moves logits")
            with pytest.raises(CheckpointError, match="by nan"):
                case.gap("live", case.logits["live"] * torch.nan, "")

    def test_the_cast_is_a_figure(self, asked, job, tmp_path):
        cases, _ = asked
        report = module.Report(tmp_path, {})
        module._measure_cast(job(SETTINGS["both_loras"]), cases, report)
        assert 1e-9 < report.divergence < 1e-2 and report.num_tokens == sum(len(c.logits["cast"]) for c in cases)
        case = module.Case("x", {}, None, {"live": torch.tensor([[2.0, 1.0]]), "cast": torch.tensor([[1.0, 2.0]])})
        module._measure_cast(job(SETTINGS["both_loras"]), [case], report)
        assert report.parted == report.num_tokens == 1
        assert report.divergence == pytest.approx(0.4621, abs=1e-4)  # (p - q) ln(p / q) with p = 0.731
        assert "--dtype float32 or --format peft keeps" in str(report) and "1 of 1 tokens change" in str(report)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "file, change, words",
        [
            (None, None, None),
            ("generation_config.json", {"eos_token_id": 5}, r"stop tokens \[5\]"),
            ("config.json", {"max_dynamic_patch": 9}, "tile size, limits and thumbnail"),
            ("config.json", {"use_thumbnail": False}, "cuts other tiles"),
            ("config.json", {"template": "Hermes-2"}, "the chat ids of its prompt differ"),
            ("tokenizer_config.json", {"chat_template": "{{ messages[0]['content'] }}"}, "the template ids"),
            ("config.json", {"select_layer": -2}, "the opened export's logits differ by"),
            ("prompts.py", "raise RuntimeError('on purpose')", "clean process can't use it: RuntimeError: on purpose"),
        ],
    )
    def test_what_servers_read(self, asked, written, tmp_path, file, change, words):
        """The comparison of files would see these first; a writer that is wrong would write them."""
        out = shutil.copytree(written[1], tmp_path / "out")
        if isinstance(change, str):
            (out / file).write_text(change)
        elif file:
            write_json(out / file, {**read_json(out / file), **change})
        if words is None:
            assert set(module.compare_opened(asked[0], out, asked[1])) == {case.name for case in asked[0]}
            return
        with pytest.raises(CheckpointError, match=words):
            module.compare_opened(asked[0], out, asked[1])


def test_a_wrong_merge(job, tmp_path, monkeypatch):
    """Writer and lay-over share the merge; the other formula sees a bug in it, and so do the logits."""

    forgets = lambda base, parts, config, layer: Cast(base, torch.float32)  # noqa: E731
    monkeypatch.setattr(trained.merge, "merged_weight", forgets)
    held = job(SETTINGS["lora"])
    export.write(held, tmp_path / "out")
    with pytest.raises(CheckpointError, match="verification failed: .*not base . scale x B A"):
        verify(held, tmp_path / "out")
    monkeypatch.setattr(module, "compare_tensors", lambda job, out: {})
    with pytest.raises(CheckpointError, match="case text only: merging moves logits by"):
        verify(held, tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("can't allocate memory")])
def test_what_breaks_it_off_is_no_verdict(written, monkeypatch, error):
    def fails(job, work):
        raise error

    monkeypatch.setattr(module, "ask", fails)
    with pytest.raises(CheckpointError, match=r"broke off: .*(space left|memory).*out stands, but is not verified"):
        verify(*written)


@pytest.mark.slow
@pytest.mark.parametrize("format", [None, "hf"])
@pytest.mark.parametrize("name", ["projector", "both_loras"])
def test_true_export(job, name, format, tmp_path):
    held = job(SETTINGS[name], format=format)
    export.write(held, tmp_path / "out")
    said = str(verify(held, tmp_path / "out"))
    assert said.startswith(f"verified: {tmp_path / 'out'} stands\n") and "mlp1 6 of 6" in said and "cast" not in said


@pytest.mark.slow
def test_conversion(toy_base, run_tool, tmp_path):
    """At the command line: compared with its source, in either direction and with a cast."""
    tool = "tools/convert_to_official.py"
    for source, out, options in (
        (toy_base, tmp_path / "hf", ("--format", "hf", "--dtype", "bfloat16")),
        (tmp_path / "hf", tmp_path / "back", ()),
    ):
        done = run_tool(tool, "--from", source, out, *options, "--verify")
        assert done.returncode == 0 and f"verified: {out} stands" in done.stdout, done.stderr
