"""Opens an export without this project and writes its answers.

``verify.py`` runs it as a process of its own::

    python -I verify_probe.py EXPORT WORK

WORK holds ``cases.json``, ``pixels.pt`` and the images; ``probe.pt`` is written beside them. The process can't import
this project: the model comes from transformers and, for the official format, from the code in the export.
"""

import json
import sys
from pathlib import Path
from unittest import mock

sys.modules["xtuner_plugins"] = None  # an import of it is an ImportError from here on

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402


def open_export(directory):
    """Returns (model, tokenizer, whether the format is the official one)."""
    kind = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    own_class = {"internvl": "InternVLForConditionalGeneration", "llava": "LlavaForConditionalGeneration"}.get(kind)
    opener, code = getattr(transformers, own_class or "AutoModel"), {} if own_class else {"trust_remote_code": True}
    model, info = opener.from_pretrained(directory, torch_dtype=torch.float32, output_loading_info=True, **code)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[key]:
            raise SystemExit(f"the export does not load whole: {key} {sorted(map(str, info[key]))[:4]}")
    return model.eval(), transformers.AutoTokenizer.from_pretrained(directory, **code), own_class is None


def by_chat(model, tokenizer, case, pixels):
    """The ids that the export's own ``chat`` passes to its network, and those of its chat template without images."""
    options = dict(max_new_tokens=1, do_sample=False)
    with mock.patch.object(model, "generate", wraps=model.generate) as generate:
        model.chat(tokenizer, pixels, case["question"], options, num_patches_list=case["num_tiles"] or None)
    facts = {"chat ids": generate.call_args.kwargs["input_ids"][0].tolist()}
    if pixels is None:
        messages = [{"role": "user", "content": case["question"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        facts["template ids"] = tokenizer(text, add_special_tokens=False).input_ids
    return facts


def by_processor(directory, case, images, own, theirs):
    """Ids and tiles of the export's processor; its image token ``theirs`` is written as ``own``."""
    processor = transformers.AutoProcessor.from_pretrained(directory)
    text = case["question"].replace("<image>\n", "")
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    made = processor(text=prompt, images=[Image.open(path) for path in images] or None, return_tensors="pt")
    facts = {"processor ids": [own if n == theirs else n for n in made["input_ids"][0].tolist()]}
    return facts | ({"processor pixels": made["pixel_values"].float()} if images else {})


@torch.no_grad()
def main(directory, work):
    """Answers the cases in ``work`` with the model in ``directory``."""
    model, tokenizer, official = open_export(directory)
    stops, results = model.generation_config.eos_token_id, {}
    own = theirs = model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    if model.config.model_type == "llava":  # its processor uses another token for images
        theirs = model.config.image_token_index
    tiles = torch.load(work / "pixels.pt", weights_only=True)
    for case in json.loads((work / "cases.json").read_text(encoding="utf-8")):
        pixels, images = tiles[case["name"]], [work / name for name in case["images"]]
        facts = {"stops": stops if isinstance(stops, list) else [stops]}
        facts["tokenizer ids"] = tokenizer(case["prompt"]).input_ids
        if official:
            facts |= by_chat(model, tokenizer, case, pixels)
        else:
            facts |= by_processor(directory, case, images, own, theirs)
        ids = torch.tensor([[theirs if each == own else each for each in case["ids"] + case["answer"]]])
        logits = model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        results[case["name"]] = {**facts, "logits": logits[0, len(case["ids"]) - 1 : -1].clone()}
    torch.save(results, work / "probe.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
