"""Verification passes for true exports of each kind and fails for one changed byte, row, file or rule."""

import json
import re
import shutil
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig

from tests.probed import probed
from tests.weights.training import LORA, SETTINGS, make_model, save_pth
from xtuner_plugins.export import export, trained
from xtuner_plugins.inference import verify as module
from xtuner_plugins.inference.verify import compare_tensors, verify
from xtuner_plugins.weights import manifest, model_view, writer
from xtuner_plugins.weights.lazy import cast
from xtuner_plugins.weights.reading import CheckpointError, read_json
from xtuner_plugins.weights.writer import write_json

TOKENS = dict(llm_lora={**LORA, "target_modules": ["q_proj"], "trainable_token_indices": [0, 9]})
QLORA = dict(llm_lora=LORA, llm_quantization={"type": BitsAndBytesConfig, "load_in_4bit": True})
DOWN, UP = (f"language_model.model.layers.1.mlp.{name}_proj.weight" for name in ("down", "up"))


@pytest.fixture(scope="module")
def job(toy_base, tmp_path_factory):
    """Makes the export of a run with some settings; keyword arguments as for `prepare`."""
    made = {}

    def make(settings, **choices):
        if str(settings) not in made:
            path = tmp_path_factory.mktemp("run") / "iter_1.pth"
            made[str(settings)] = save_pth(make_model(toy_base, **settings), path)
        return export.prepare(None, made[str(settings)], **choices)

    return make


@pytest.fixture(scope="module")
def written(job, tmp_path_factory):
    """A job with both LoRAs and its export in bfloat16, in shards."""
    out = tmp_path_factory.mktemp("written") / "out"
    held = job(SETTINGS["both_loras"], dtype="bfloat16")
    with mock.patch.object(writer, "SHARD_BYTES", 300_000):
        export.write(held, out)
    return held, out


def test_true_exports_and_conversions(job, toy_base, tmp_path):
    """Of each kind of run, and of adapters whose packed 4-bit weights never reach the export."""
    rslora, dora = ({"llm_lora": {**LORA, name: True}} for name in ("use_rslora", "use_dora"))
    for number, (held, *differ, is_cast) in enumerate(
        (
            (job(SETTINGS["projector"]), 0, 6, 0, False),
            (job(SETTINGS["full"]), 32, 6, 27, False),
            (job(SETTINGS["both_loras"], format="hf"), 4, 6, 6, False),
            (job(TOKENS, format="hf"), 0, 6, 3, False),  # two q_proj and the embedding
            (job(SETTINGS["lora"], dtype="float16"), 0, 6, 6, True),
            (job(rslora, dtype="bfloat16"), 0, 6, 6, True),
            (job(dora, dtype="bfloat16"), 0, 6, 6, True),
            (job(QLORA), 0, 6, 6, False),
            (export.prepare_conversion(toy_base, format="hf", dtype="bfloat16"), 0, 0, 0, True),
        )
    ):
        export.write(held, out := tmp_path / f"out{number}")
        report = probed(verify, held, out)
        changes = {part: count for part, (count, _) in report.changed.items()}
        assert changes == dict(zip(("vision_model", "mlp1", "language_model"), differ, strict=True)), number
        assert report.text.startswith(f"verified: {out} stands\n") and ("cast" in report.text) == is_cast
        assert "many tiles  logits: merged" in report.text and "note:" not in report.text


def renewed(out):
    """The manifest again says what the files are: whoever changes one can do that."""
    told = read_json(out / manifest.FILE)
    told["files"] = {name: manifest.digest(out / name) for name in told["files"] if (out / name).is_file()}
    write_json(out / manifest.FILE, told)


@mock.patch.object(writer, "SHARD_BYTES", 300_000)
def test_every_file_that_ships(job, tmp_path):
    """One change each, the manifest renewed: all are seen, and so is a file too many or too few."""
    for format in ("official", "hf"):
        held, out = job(SETTINGS["both_loras"], format=format), tmp_path / format
        export.write(held, out)
        module.compare_files(held, out)
        small = {path: path.read_bytes() for path in out.iterdir() if path.suffix != ".safetensors"}
        changes = {path: before + b"\n" for path, before in small.items() if path.name != manifest.FILE}
        changes[out / manifest.FILE] = json.dumps({**read_json(out / manifest.FILE), "x": 1}).encode()
        for path, content in (changes | {out / "extra.py": b"", out / "deep/tokenizer.json": b"{}"}).items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            renewed(out)
            with pytest.raises(CheckpointError, match=f"{path.relative_to(out)}.*not what the export writes"):
                module.compare_files(held, out)
            path.unlink()
            for each, before in small.items():
                each.write_bytes(before)
        for name in ("tokenizer_config.json", "generation_config.json"):
            (out / name).unlink()
        renewed(out)
        with pytest.raises(CheckpointError, match="failed: generation_config.json, tokenizer_config.json: not what"):
            verify(held, out)


def test_a_changed_byte(written, tmp_path):
    """Small files are looked at where a directory is opened, weights here."""
    out = shutil.copytree(written[1], tmp_path / "out")
    shard = sorted(out.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    model_view.open_model(out)
    made_from_it = export.prepare_conversion(out, format="hf"), tmp_path / "hf"
    export.write(*made_from_it)
    for exported in ((written[0], out), made_from_it):
        with pytest.raises(CheckpointError, match=f"verification failed: .*{shard.name} changed.*, but don't use it"):
            verify(*exported)
    write_json(out / "generation_config.json", {"eos_token_id": 5})
    with pytest.raises(CheckpointError, match="not as it was exported: generation_config.json changed"):
        model_view.open_model(out)


def scaled(name):
    return lambda held: {**held, name: (held[name].float() * 1.004).bfloat16()}


def flipped(name, row=-1):
    return lambda held: {**held, name: held[name].index_fill(0, torch.tensor([row % len(held[name])]), 1.0)}


def stepped(name, by):
    """The number whose half step is the smallest share of it, one step of bfloat16 further."""

    def change(held):
        bits = held[name].clone().view(torch.int16)
        bits.flatten()[held[name].float().frexp().mantissa.abs().argmax()] += by
        return {**held, name: bits.view(torch.bfloat16)}

    return change


CHANGES = [
    *((stepped(DOWN, by), "down_proj.weight, rows 0 to 64: not base") for by in (1, -1)),
    (scaled(DOWN), "down_proj.weight, rows 0 to 64: not base . scale x B A within one rounding"),
    (scaled(UP), "up_proj.weight, rows 0 to 128: other numbers than were trained"),
    (scaled("vision_model.encoder.layers.1.ls2"), "ls2, rows .*other numbers"),
    (flipped("mlp1.3.bias"), "mlp1.3.bias.*other numbers"),
    (lambda held: {**held, DOWN: torch.full_like(held[DOWN], torch.nan)}, "down_proj.*not base"),
    (lambda held: {name: t for name, t in held.items() if name != UP}, "lack or add 1 tensors: .*up_proj"),
    (lambda held: {**held, UP: held[UP].float()}, r"up_proj.weight is float32.*bfloat16.*was due"),
]
EMBEDDING = "language_model.model.embed_tokens.weight"
# hf adds a row for its video token: it holds zeros, or the export is wrong.
TOKEN_CHANGES = [
    (flipped(EMBEDDING, 9), "embed_tokens.weight, rows.*other numbers"),
    (flipped(EMBEDDING), "tokens that were not trained"),
]


def test_a_changed_tensor(job, written, tmp_path):
    with pytest.raises(CheckpointError, match="x: not base"):  # of a number that is 0 no step may be off
        module._check_merged(torch.full((1, 1), 2e-3).bfloat16(), torch.zeros(1, 1).double(), "x")
    tokens = job(TOKENS, format="hf"), tmp_path / "tokens"
    export.write(*tokens)
    for (held, out), changes in ((written, CHANGES), (tokens, TOKEN_CHANGES)):
        other = shutil.copytree(out, tmp_path / held.draft.format.NAME, ignore=shutil.ignore_patterns("*.safetensors*"))
        for change, words in changes:
            tensors = {name: tensor for shard in out.glob("*.safetensors") for name, tensor in load_file(shard).items()}
            save_file(change(tensors), other / "model.safetensors", metadata={"format": "pt"})
            with pytest.raises(CheckpointError, match=words):
                compare_tensors(held, other)


def test_a_trained_part_that_is_the_bases(toy_base, tmp_path):
    model, base = make_model(toy_base), load_file(toy_base / "model.safetensors")
    state = {f"model.{name}": tensor for name, tensor in base.items() if name.startswith("mlp1.")}
    held = export.prepare(None, save_pth(model, tmp_path / "iter_1.pth", state=state))
    export.write(held, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no tensor of mlp1 differs from the base, though it was trained"):
        compare_tensors(held, tmp_path / "out")


@pytest.fixture(scope="module")
def asked(job, tmp_path_factory):
    """Cases of a job, with the folder of their images."""
    folder = tmp_path_factory.mktemp("asked")
    return module.ask(job(SETTINGS["both_loras"], dtype="bfloat16"), folder), folder


def test_what_is_asked_and_what_the_cast_costs(asked):
    """Live, merged and cast: one answering model, whose merged weights give its logits."""
    cases = asked[0]
    assert [len(case.pixels) if case.pixels is not None else 0 for case in cases] == [0, 1, 7, 10]
    for case in cases:
        live, merged, cast = (case.logits[kind] for kind in ("live", "merged", "cast"))
        assert 0 < case.noise < 1e-4 and 0 < case.gap(live, merged, "") < case.allowed()
        for wrong in (cast, live * torch.nan):
            with pytest.raises(CheckpointError, match=f"case {case.name}: merging moves logits by"):
                case.gap(live, wrong, "merging moves logits")
    said, *_ = module.cost_of_cast(cases, peft=True)
    divergence = float(re.search(r"KL (\S+) nats", said)[1])
    assert 1e-9 < divergence < 1e-2 and f" of {sum(len(each.logits['cast']) for each in cases)} tokens" in said
    case = module.Case("x", {}, None, {"live": torch.tensor([[2.0, 1.0]]), "cast": torch.tensor([[1.0, 2.0]])})
    said, warning = module.cost_of_cast([case], peft=True)
    assert "KL 4.6e-01 nats" in said and "1 of 1 tokens change" in said  # (p - q) ln(p / q) with p = 0.731
    assert "--dtype float32 or --format peft keeps" in warning


def test_what_servers_read(asked, written, tmp_path):
    """The comparison of files would see these first; a writer that is wrong would write them."""
    assert len(probed(module.compare_opened, asked[0], written[1], asked[1])) == len(asked[0])
    for number, (file, change, words) in enumerate(
        (
            ("generation_config.json", {"eos_token_id": 5}, r"stop tokens \[5\]"),
            ("config.json", {"max_dynamic_patch": 9}, "tile size, limits and thumbnail"),
            ("config.json", {"template": "Hermes-2"}, "the chat ids of its prompt differ"),
            ("tokenizer_config.json", {"chat_template": "{{ messages[0]['content'] }}"}, "the template ids"),
            ("config.json", {"select_layer": -2}, "the opened export's logits differ by"),
        )
    ):
        out = shutil.copytree(written[1], tmp_path / f"changed{number}")
        write_json(out / file, {**read_json(out / file), **change})
        with pytest.raises(CheckpointError, match=words):
            probed(module.compare_opened, asked[0], out, asked[1])
    out = shutil.copytree(written[1], tmp_path / "importing")
    (out / "prompts.py").write_text("import xtuner_plugins")
    with pytest.raises(CheckpointError, match="clean process can't use it: .*xtuner_plugins"):
        module.compare_opened(asked[0], out, asked[1])


def test_tiles_of_a_processor_are_two_levels_off_at_most(asked):
    case = asked[0][1]
    found = {"stops": [case.task["stop"]], "logits": case.logits["cast"]}
    near, far = (case.pixels + levels / 255 / 0.224 for levels in (1.995, 2.005))
    module._compare_opened(case, {**found, "processor pixels": near})
    for pixels in (far, near.repeat(2, 1, 1, 1)):
        with pytest.raises(CheckpointError, match="case one tile: the processor's tiles differ"):
            module._compare_opened(case, {**found, "processor pixels": pixels})


def test_a_wrong_merge(job, tmp_path, monkeypatch):
    """Writer and lay-over share the merge; the other formula sees a bug in it, and so do the logits."""
    forgets = lambda base, parts, config, layer: cast(base, torch.float32)  # noqa: E731
    monkeypatch.setattr(trained.merge, "merged_weight", forgets)
    export.write(held := job(SETTINGS["lora"]), out := tmp_path / "out")
    for words in ("not base . scale x B A within one rounding", "case text only: merging moves logits by"):
        with pytest.raises(CheckpointError, match=f"verification failed: .*{words}"):
            verify(held, out)
        monkeypatch.setattr(module, "compare_tensors", lambda job, out: {})


def test_what_breaks_it_off_is_no_verdict(written, monkeypatch, capsys):
    for error, told, words in (
        (
            OSError(28, "No space left on device"),
            CheckpointError,
            "broke off: .*space left.*out stands, but is not v",
        ),
        (KeyError("x"), KeyError, "x"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ):
        monkeypatch.setattr(module, "ask", mock.Mock(side_effect=error))
        with pytest.raises(told, match=words):
            verify(*written)
    assert capsys.readouterr().err.count("out stands, but is not verified\n") == 2


@pytest.mark.slow
def test_conversion_at_the_command_line(toy_base, run_tool, tmp_path):
    for source, out, format in ((toy_base, tmp_path / "hf", "hf"), (tmp_path / "hf", tmp_path / "back", "official")):
        done = run_tool("tools/convert_to_official.py", "--from", source, out, "--format", format, "--verify")
        assert done.returncode == 0 and f"verified: {out} stands" in done.stdout, done.stderr
