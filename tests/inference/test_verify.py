"""Verification passes for true exports of each kind and fails for one changed byte, row, file or rule."""

import json
import shutil
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.training import LORA, SETTINGS, make_model, save_pth, write_config
from xtuner_plugins.export import export, trained
from xtuner_plugins.inference import verify as module
from xtuner_plugins.inference.verify import verify
from xtuner_plugins.inference.verify_tensors import compare_tensors
from xtuner_plugins.weights import manifest, model_view
from xtuner_plugins.weights.lazy import cast
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


def test_tensors_of_each_run(job, tmp_path):
    for name in SETTINGS:
        held, out = job(SETTINGS[name]), tmp_path / name
        export.write(held, out)
        changed = {part: count for part, (count, _) in compare_tensors(held, out).items()}
        vision, language = {"full": (32, 27), "lora": (0, 6), "both_loras": (4, 6)}.get(name, (0, 0))
        assert changed == {"vision_model": vision, "mlp1": 6, "language_model": language}, name


def test_tensors_of_each_adapter(job, tmp_path):
    for name, dtype in [*((name, "bfloat16") for name in EVERY_ADAPTER), ("dora", None), ("lora", "float16")]:
        held, out = job(dict(llm_lora=EVERY_ADAPTER[name]), dtype=dtype), tmp_path / f"{name}-{dtype}"
        export.write(held, out)
        compare_tensors(held, out)
        held.plan.lora_configs["language_model"].lora_alpha *= 1.01
        with pytest.raises(CheckpointError, match="not base . scale x B A within one rounding"):
            compare_tensors(held, out)


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


def test_every_file_that_ships(job, tmp_path):
    """One change each, the manifest renewed: all are seen, and so is a file too many or too few."""
    exports = [(job(SETTINGS["both_loras"], format=format), tmp_path / format) for format in ("official", "hf")]
    for held, out in exports:
        export.write(held, out, max_shard_size="300KB")
        module.compare_files(held, out)
    small = [(held, out, path) for held, out in exports for path in out.iterdir() if path.suffix != ".safetensors"]
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert wanted < {path.name for *_, path in small}
    for held, out, path in small:
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
    (out / "deep").mkdir()
    for extra in ("extra.py", "deep/tokenizer.json"):
        (out / extra).write_text("{}")
        with pytest.raises(CheckpointError, match=extra):
            module.compare_files(held, out)
        (out / extra).unlink()
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


CHANGES = [
    (scaled(DOWN), "down_proj.weight, rows 0 to 64: not base . scale x B A within one rounding"),
    (scaled(UP), "up_proj.weight, rows 0 to 128: other numbers than were trained"),
    (scaled("vision_model.encoder.layers.1.ls2"), "ls2, rows .*other numbers"),
    (flipped("mlp1.3.bias"), "mlp1.3.bias.*other numbers"),
    (lambda held: {**held, DOWN: torch.full_like(held[DOWN], torch.nan)}, "down_proj.*not base"),
    (lambda held: {name: t for name, t in held.items() if name != UP}, "lack or add 1 tensors: .*up_proj"),
    (lambda held: {**held, UP: held[UP].float()}, r"up_proj.weight is float32.*bfloat16.*was due"),
]


def test_a_changed_tensor(written, tmp_path):
    held, out = written
    shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("*.safetensors*"))
    for change, words in CHANGES:
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


@pytest.fixture(scope="module")
def asked(job, tmp_path_factory):
    """Cases of a job, with the folder of their images."""
    folder = tmp_path_factory.mktemp("asked")
    return module.ask(job(SETTINGS["both_loras"], dtype="bfloat16"), folder), folder


def test_what_is_asked_and_what_the_cast_costs(asked, tmp_path):
    """Live, merged and cast: one answering model, whose merged weights give its logits."""
    cases, report = asked[0], module.Report(tmp_path, {})
    assert [len(case.pixels) if case.pixels is not None else 0 for case in cases] == [0, 1, 7, 10]
    for case in cases:
        live, merged, cast = (case.logits[kind] for kind in ("live", "merged", "cast"))
        assert 0 < case.noise < 1e-4 and 0 < case.gap(live, merged, "") < case.allowed()
        for wrong in (cast, live * torch.nan):
            with pytest.raises(CheckpointError, match=f"case {case.name}: merging moves logits by"):
                case.gap(live, wrong, "merging moves logits")
    module.measure_cast(cases, report, peft=True)
    assert 1e-9 < report.divergence < 1e-2 and report.num_tokens == sum(len(c.logits["cast"]) for c in cases)
    case = module.Case("x", {}, None, {"live": torch.tensor([[2.0, 1.0]]), "cast": torch.tensor([[1.0, 2.0]])})
    module.measure_cast([case], report, peft=True)
    assert report.divergence == pytest.approx(0.4621, abs=1e-4)  # (p - q) ln(p / q) with p = 0.731
    assert "--dtype float32 or --format peft keeps" in str(report) and "1 of 1 tokens change" in str(report)


@pytest.mark.slow
def test_what_servers_read(asked, written, tmp_path):
    """The comparison of files would see these first; a writer that is wrong would write them."""
    assert len(module.compare_opened(asked[0], written[1], asked[1])) == len(asked[0])
    for number, (file, change, words) in enumerate(
        (
            ("generation_config.json", {"eos_token_id": 5}, r"stop tokens \[5\]"),
            ("config.json", {"max_dynamic_patch": 9}, "tile size, limits and thumbnail"),
            ("config.json", {"template": "Hermes-2"}, "the chat ids of its prompt differ"),
            ("tokenizer_config.json", {"chat_template": "{{ messages[0]['content'] }}"}, "the template ids"),
            ("config.json", {"select_layer": -2}, "the opened export's logits differ by"),
            ("prompts.py", "import xtuner_plugins", "clean process can't use it: .*xtuner_plugins"),
        )
    ):
        out = shutil.copytree(written[1], tmp_path / str(number))
        if isinstance(change, str):
            (out / file).write_text(change)
        else:
            write_json(out / file, {**read_json(out / file), **change})
        with pytest.raises(CheckpointError, match=words):
            module.compare_opened(asked[0], out, asked[1])


def test_a_wrong_merge(job, tmp_path, monkeypatch):
    """Writer and lay-over share the merge; the other formula sees a bug in it, and so do the logits."""

    forgets = lambda base, parts, config, layer: cast(base, torch.float32)  # noqa: E731
    monkeypatch.setattr(trained.merge, "merged_weight", forgets)
    held = job(SETTINGS["lora"])
    export.write(held, tmp_path / "out")
    with pytest.raises(CheckpointError, match="verification failed: .*not base . scale x B A"):
        verify(held, tmp_path / "out")
    monkeypatch.setattr(module, "compare_tensors", lambda job, out: {})
    with pytest.raises(CheckpointError, match="case text only: merging moves logits by"):
        verify(held, tmp_path / "out")


def test_what_breaks_it_off_is_no_verdict(written, monkeypatch):
    monkeypatch.setattr(module, "ask", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match=r"broke off: .*space left.*out stands, but is not verified"):
        verify(*written)


@pytest.mark.slow
def test_true_export(job, tmp_path):
    for name, format in (("projector", None), ("both_loras", None), ("both_loras", "hf")):
        held, out = job(SETTINGS[name], format=format), tmp_path / f"{name}-{format}"
        export.write(held, out)
        said = str(verify(held, out))
        assert said.startswith(f"verified: {out} stands\n") and "mlp1 6 of 6" in said and "cast" not in said


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
