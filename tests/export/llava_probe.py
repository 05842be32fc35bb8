"""Opens an export in the llava format with some release of transformers, this project out of reach.

    python llava_probe.py EXPORT REFERENCE.pt

REFERENCE holds ``pixels``, ``ids`` and the ``logits`` of our own model. Printed are version and largest difference; a
tensor that lacks, a processor that doesn't work or an answer of no token is an error.
"""

import sys

sys.modules["xtuner_plugins"] = None  # an import of it is an ImportError from here on

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402


def main(directory, reference):
    expected = torch.load(reference, weights_only=True)
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        directory, torch_dtype=torch.float32, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], (kind, info[kind])
    processor = transformers.AutoProcessor.from_pretrained(directory)
    image = Image.effect_noise((150, 90), 80).convert("RGB")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        made = model.eval().generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        ids = expected["ids"]
        logits = model(pixel_values=expected["pixels"], input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert made.shape[1] == inputs["input_ids"].shape[1] + 4
    gap = (logits[..., : expected["logits"].shape[-1]] - expected["logits"]).abs().max().item()
    assert gap <= 1e-5, gap  # two implementations in fp32
    print(transformers.__version__, gap)


if __name__ == "__main__":
    main(*sys.argv[1:])
