"""What XTuner 0.2.0's converter for InternVL does at least, for its peak memory (`bench_export.py --peer`).

    python benchmarks/peer_export.py CONFIG CHECKPOINT OUT

Its `configs/internvl/v1_5/convert_to_official.py` builds `InternVL_V1_5`, which insists on FlashAttention 2 and so on a
GPU's package. These are its steps without that: the model in bfloat16; with LoRA `prepare_model_for_kbit_training` and
`get_peft_model` as `InternVL_V1_5` calls them; XTuner's own `guess_load_checkpoint`; `load_state_dict`;
`to(bfloat16)`; `merge_and_unload`; `save_pretrained`. The model is filled tensor by tensor here, which needs no more
memory than the `from_pretrained` of the original.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(config_path: str, checkpoint: str, out: str) -> None:
    from mmengine.config import Config
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from xtuner.model.utils import guess_load_checkpoint

    from xtuner_plugins.weights.loader import load_model

    cfg = Config.fromfile(config_path).model
    holder = nn.Module()
    holder.model, _ = load_model(cfg.base, dtype=torch.bfloat16)
    lora = cfg.get("llm_lora")
    if lora is not None:
        settings = LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, target_modules=list(lora.target_modules))
        llm = prepare_model_for_kbit_training(holder.model.language_model, True)
        holder.model.language_model = get_peft_model(llm, settings)
    state = guess_load_checkpoint(checkpoint)
    if lora is not None:  # the names of its own checkpoints
        inner = "model.language_model."
        state = {
            n.replace(inner, inner + "base_model.model.") if n.startswith(inner) else n: t for n, t in state.items()
        }
    unexpected = holder.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, unexpected[:3]
    holder.to(torch.bfloat16)
    if lora is not None:
        holder.model.language_model = holder.model.language_model.merge_and_unload()
    holder.model.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
