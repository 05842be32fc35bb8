"""Run as a process: trains one step of the toy model under DeepSpeed on the CPU and saves a checkpoint directory.

    python -m tests.weights.zero_case STAGE BASE OUT LORA(0|1)

RANK and WORLD_SIZE say which process of several this is. Without LoRA, frozen weights are saved, too. Rank 0 also
writes ``reference.pt`` beside OUT: the fp32 master weights as DeepSpeed itself gathers them from the live engine. At
stage 3 the base is loaded in shares first, and ``logits.pt`` has what it says.
"""

import sys
from pathlib import Path

import torch


def load_in_shares(base: str, settings: dict) -> torch.Tensor:
    """Loads a base under ZeRO-3, checks what this rank holds, and returns the logits."""
    from deepspeed import zero

    from tests.weights.training import chat_inputs, logits
    from xtuner_plugins.weights.loader import load_model
    from xtuner_plugins.weights.partition import is_partitioned, over_ranks

    split, largest = over_ranks({"zero_optimization": settings}), 0

    def watched(model, name):
        nonlocal largest
        largest = max(largest, sum(p.numel() for p in model.parameters() if not p.is_meta))
        split(model, name)

    model = load_model(base, dtype=torch.float32, filled=watched)
    parameters = list(model.parameters())
    whole, held = (sum(getattr(p, key).numel() for p in parameters) for key in ("ds_shape", "ds_tensor"))
    share = whole / torch.distributed.get_world_size()
    assert all(map(is_partitioned, parameters)) and share <= held <= share + len(parameters) and largest < whole / 2
    model.img_context_token_id = 508
    with zero.GatheredParameters(parameters):
        return logits(model, chat_inputs(model))


def main(stage: int, base: str, out: Path, lora: bool) -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    from tests.weights.training import SETTINGS, make_model, record_of, training_inputs
    from xtuner_plugins.engine.launch.entry import prepare_runtime
    from xtuner_plugins.engine.run.runtime import leave_process_group
    from xtuner_plugins.weights import record

    prepare_runtime(base)  # without a GPU DeepSpeed would compile an op first
    deepspeed.init_distributed("gloo")
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    found = {"logits": load_in_shares(base, zero)} if stage == 3 else {}
    model = make_model(base, **SETTINGS["lora" if lora else "projector"])
    trainable = [p for p in model.parameters() if p.requires_grad]
    half = len(trainable) // 2  # two groups, as with separate learning rates
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "bf16": {"enabled": True}}
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.AdamW([{"params": trainable[:half]}, {"params": trainable[half:], "lr": 1e-2}], lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    torch.manual_seed(1 + engine.global_rank)
    num_tokens = 2 * model.num_image_token
    ids = torch.randint(0, 500, (1, num_tokens + 8))
    ids[:, :num_tokens] = model.img_context_token_id
    pixels = torch.randn(2, 3, model.tile_size, model.tile_size)
    engine.backward(engine(**training_inputs(model, ids, pixels), mode="loss")["loss"])
    engine.step()
    state = {"meta": {"seed": 1}, record.KEY: record_of(**model.made_with)}
    engine.save_checkpoint(str(out.parent), tag=out.name, client_state=state, exclude_frozen_parameters=lora)
    trained = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
    found["reference"] = {name: safe_get_full_fp32_param(p).clone() for name, p in trained.items()}
    for name, value in found.items() if engine.global_rank == 0 else ():
        torch.save(value, out.parent / f"{name}.pt")
    leave_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "1")
