"""Run as a process of several: loads a base under ZeRO-3, checks what each rank holds, saves the logits.

    python -m tests.weights.partition_case BASE OUT

RANK, LOCAL_RANK and WORLD_SIZE say which process this is.
"""

import sys
from pathlib import Path

import torch

STAGE_3 = {"stage": 3, "stage3_param_persistence_threshold": 0}


def main(base: str, out: Path) -> None:
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from tests.weights.training import LORA, chat_inputs, logits, training_inputs
    from xtuner_plugins.engine.launch.entry import prepare_runtime
    from xtuner_plugins.engine.run.runtime import leave_process_group
    from xtuner_plugins.models.vlm import VisionLanguageModel
    from xtuner_plugins.weights.loader import load_model
    from xtuner_plugins.weights.partition import is_partitioned, over_ranks

    prepare_runtime(base)  # without a GPU DeepSpeed would compile an op first
    deepspeed.init_distributed("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    split = over_ranks({"zero_optimization": STAGE_3})
    largest = 0

    def watched(model, name):
        nonlocal largest
        largest = max(largest, sum(p.numel() for p in model.parameters() if not p.is_meta))
        split(model, name)

    model = load_model(base, dtype=torch.float32, filled=watched)
    parameters = list(model.parameters())
    assert all(is_partitioned(p) for p in parameters)
    whole = sum(p.ds_numel for p in parameters)
    held = sum(p.ds_tensor.numel() for p in parameters)
    assert whole / world_size <= held <= whole / world_size + len(parameters) and largest < whole / 2, (held, largest)
    model.img_context_token_id = 508
    with deepspeed.zero.GatheredParameters(parameters):
        values = logits(model, chat_inputs(model))
    if rank == 0:
        torch.save(values, out)

    # The training model, with adapters, in bfloat16: DeepSpeed refuses parameters of another dtype.
    config = {"zero_optimization": STAGE_3, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 1}
    alive = HfDeepSpeedConfig(config)  # noqa: F841  (transformers holds it weakly)
    trained = VisionLanguageModel(base=base, llm_lora=LORA, gradient_checkpointing=False)
    assert {p.dtype for p in trained.parameters()} == {torch.bfloat16}
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-3)
    config["zero_allow_untested_optimizer"] = True
    engine, *_ = deepspeed.initialize(model=trained, optimizer=optimizer, config=config)
    ids = torch.randint(0, 500, (1, 8))
    loss = engine(**training_inputs(trained, ids), mode="loss")["loss"]
    engine.backward(loss)
    engine.step()
    assert torch.isfinite(loss)
    leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
