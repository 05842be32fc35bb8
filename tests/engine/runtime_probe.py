"""Which defects of the pinned stack are met: ``python -m tests.engine.runtime_probe [prepared]`` prints them as JSON.

Each probe meets one defect as a run would, in a process of its own, and raises where it is there. With the argument
``prepared`` the process first calls `prepare_runtime`, as XTuner does.
"""

import json
import os
import socket
import sys
import tempfile
import traceback


def freed_tensors_that_are_kept():
    """As a step does: blocks of 12 MiB between smaller ones that stay, after one of 31 MiB was freed."""
    import psutil
    import torch

    torch.ones(31 << 18)
    before = psutil.Process().memory_info().rss
    kept = [(torch.ones(3 << 20), torch.ones(1 << 15)) for _ in range(20)]
    kept = [small for _, small in kept]
    held = psutil.Process().memory_info().rss - before
    if held > 100 << 20:
        raise MemoryError(f"{held >> 20} MiB are held after 240 were freed, beside {len(kept)} small tensors")


def checkpoints_that_cannot_be_opened_again():
    import numpy as np
    import torch
    from mmengine.config import ConfigDict
    from mmengine.logging import MessageHub

    hub = MessageHub("probe")
    hub.update_scalar("train/loss", 1.5)
    with tempfile.TemporaryDirectory() as folder:
        state = {"message_hub": hub.state_dict(), "cfg": ConfigDict(a=1), "lr": np.float64(0.1)}
        torch.save(state, f"{folder}/iter_1.pth")
        opened = torch.load(f"{folder}/iter_1.pth", weights_only=True)
    assert opened["message_hub"]["log_scalars"]["train/loss"].current() == 1.5


def classes_that_no_config_can_name():
    from mmengine.registry import DATASETS, HOOKS, LOOPS, MODELS

    for registry, name in (
        (MODELS, "VisionLanguageModel"),
        (DATASETS, "MultimodalDataset"),
        (LOOPS, "PlannedTrainLoop"),
        (HOOKS, "WholeCheckpointHook"),
    ):
        assert registry.get(name) is not None, name


def no_process_group_without_gpu():
    from mmengine.dist import init_dist

    launched()
    init_dist("pytorch", backend="nccl")


def no_process_group_of_deepspeed_without_gpu():
    from mmengine.dist import init_dist

    launched()
    init_dist("pytorch", backend="nccl", init_backend="deepspeed")


def an_op_compiled_for_the_cpu():
    """On a machine with a compiler: that takes a minute, and a killed run leaves a lock that hangs the next one."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    deepspeed.ops.__compatible_ops__[builder.NAME] = True
    compiled = []
    type(builder).load = lambda self, verbose=True: compiled.append(self.NAME)
    launched()
    deepspeed.init_distributed(dist_backend="gloo")
    assert not compiled, compiled


def deepspeed_alone_looks_for_mpi():
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")


def no_ddp_on_a_cpu():
    """MMEngine's own wrapper, or ours where the runtime is prepared, as MMEngine builds it."""
    import torch
    from mmengine.registry import MODEL_WRAPPERS

    launched()
    torch.distributed.init_process_group("gloo")
    name = "DeviceAwareDDP" if "DeviceAwareDDP" in MODEL_WRAPPERS.module_dict else "MMDistributedDataParallel"
    wrapped = MODEL_WRAPPERS.build({"type": name, "module": torch.nn.Linear(2, 2), "device_ids": [0]})
    assert not wrapped.broadcast_buffers


PROBES = (
    checkpoints_that_cannot_be_opened_again,
    classes_that_no_config_can_name,
    no_process_group_without_gpu,
    no_process_group_of_deepspeed_without_gpu,
    an_op_compiled_for_the_cpu,
    deepspeed_alone_looks_for_mpi,
    no_ddp_on_a_cpu,
    freed_tensors_that_are_kept,
)


def launched() -> None:
    """The environment of the only process of a job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def in_a_child(probe) -> bool:
    """Whether the probe raises; nothing that it does reaches the next one."""
    child = os.fork()
    if child == 0:
        failed = True
        try:
            probe()
            failed = False
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(failed)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main() -> None:
    """Prints the names of the defects that are met."""
    import deepspeed  # noqa: F401  (once, for all children)
    import xtuner.engine  # noqa: F401

    if sys.argv[1:] == ["prepared"]:
        from xtuner_plugins.engine.launch.entry import prepare_runtime

        assert prepare_runtime("some/base") == prepare_runtime("some/base") == "some/base"
    print(json.dumps([probe.__name__ for probe in PROBES if in_a_child(probe)]))


if __name__ == "__main__":
    main()
