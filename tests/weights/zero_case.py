"""Run as a process: trains one step of the toy model under DeepSpeed on the CPU and saves a checkpoint directory.

    python -m tests.weights.zero_case STAGE BASE OUT LORA(0|1) EXCLUDE_FROZEN(0|1)

With several processes, RANK and WORLD_SIZE say which one this is. Rank 0 also writes ``reference.pt`` beside OUT: the
fp32 master weights as DeepSpeed itself gathers them from the live engine.
"""

import os
import sys
from pathlib import Path

import torch


def main(stage: int, base: str, out: Path, lora: bool, exclude_frozen: bool) -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    from tests.weights.training import SETTINGS, make_model, record_of, training_inputs
    from xtuner_plugins.engine.launch.entry import prepare_runtime
    from xtuner_plugins.engine.run.runtime import leave_process_group
    from xtuner_plugins.weights import record

    prepare_runtime(base)  # without a GPU DeepSpeed would compile an op first
    deepspeed.init_distributed("gloo")
    model = make_model(base, **SETTINGS["lora" if lora else "projector"])
    trainable = [p for p in model.parameters() if p.requires_grad]
    half = len(trainable) // 2  # two groups, as with separate learning rates
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW([{"params": trainable[:half]}, {"params": trainable[half:], "lr": 1e-2}], lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    torch.manual_seed(1 + engine.global_rank)
    num_tokens = 2 * model.num_image_token
    ids = torch.randint(0, 500, (1, num_tokens + 8))
    ids[:, :num_tokens] = model.img_context_token_id
    pixels = torch.randn(2, 3, model.tile_size, model.tile_size)
    engine.backward(engine(**training_inputs(model, ids, pixels), mode="loss")["loss"])
    engine.step()
    engine.save_checkpoint(
        str(out.parent),
        tag=out.name,
        client_state={"meta": {"seed": 1}, record.KEY: record_of(**model.made_with)},
        save_latest=True,
        exclude_frozen_parameters=exclude_frozen,
    )
    reference = {n: safe_get_full_fp32_param(p).clone() for n, p in engine.module.named_parameters() if p.requires_grad}
    if engine.global_rank == 0:
        torch.save(reference, out.parent / "reference.pt")
    leave_process_group()


if __name__ == "__main__":
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    stage, base, out, lora, exclude = sys.argv[1:]
    main(int(stage), base, Path(out), lora == "1", exclude == "1")
