"""Does the model look at its images? The loss with a sample's own images, compared with another sample's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...datasets import MultimodalDataset, PreferenceDataset, collate
from ..run.loops import planned_loop
from ..run.steps import unwrap
from .validation import ValidationHook, losses_of_batch, undisturbed

NUM_SAMPLES, FEWEST = 32, 8  # of all ranks, in a long and in a short run
WHEN = (0.1, 0.5, 1.0)  # of the run; after a tenth the model has to have learned to look
# Most of a run's samples that are measured at a time. A measurement takes two passes of a sample and training three:
# with the three times above it is 2 % of the run's time.
SHARE = 0.01


class ImageGain(NamedTuple):
    """What images are worth to the model.

    Attributes:
        gain: Nats by which the loss per supervised token is lower with a sample's own images.
        low, high: Its 95 % interval over samples (Student's t of the ratio of sums).
        projector_norm: Mean Euclidean norm of the projector's output per image token.
        word_norm: The same of the word embeddings.
        num_samples: Samples behind it.
    """

    gain: float
    low: float
    high: float
    projector_norm: float
    word_norm: float
    num_samples: int

    @classmethod
    def of(cls, own: np.ndarray, other: np.ndarray, tokens: np.ndarray, norms: Sequence[float]) -> ImageGain:
        """From losses with own and with others' images and supervised tokens, each ``[samples]``, and the two norms."""
        from scipy.stats import t

        gain, number = (other - own).sum() / tokens.sum(), len(own)
        squares = ((other - own - gain * tokens) ** 2).sum()
        reach = t.ppf(0.975, number - 1) * np.sqrt(squares * number / (number - 1)) / tokens.sum()
        return cls(float(gain), float(gain - reach), float(gain + reach), *norms, number)

    def scalars(self) -> dict[str, float]:
        """What is logged."""
        return {f"images/{name}": value for name, value in zip(self._fields[:-1], self, strict=False)}

    def __str__(self) -> str:
        interval = f"{self.low:.3f} to {self.high:.3f}, {self.num_samples} samples"
        norms = f"norm of image tokens {self.projector_norm:.3g}, of words {self.word_norm:.3g}"
        return f"own images lower the loss by {self.gain:.3f} nats per token ({interval}); {norms}"


@HOOKS.register_module()
class ImageGainHook(Hook):
    """Measures on a few fixed samples how much the loss rises when their images are exchanged with others'.

    A model can reach a low loss by the text alone and give the same answers whatever it sees. So this hook warns where
    the gain can't be told from zero. The samples come from the validation data, or without it from the training data.
    It measures at the parts of a run in `WHEN`, and with each validation that has data; training isn't disturbed (see
    `ValidationHook`).

    An image is exchanged with that of the sample with the next number of tiles; missing tiles are repeated, and those
    over are left out. Runs on preference pairs, and on samples without images, aren't measured.
    """

    priority = "LOW"  # as validation, before the checkpoint

    def __init__(self):
        self._samples: list[dict] = []
        self._steps: set[int] = set()
        self._last: ImageGain | None = None

    def before_train(self, runner) -> None:
        """Opens the samples and plans when to measure."""
        training = runner.train_dataloader.dataset
        if not isinstance(training, MultimodalDataset) or isinstance(training, PreferenceDataset):
            return
        self._steps = {max(1, round(runner.max_iters * part)) for part in WHEN}
        validation = next((hook for hook in runner.hooks if isinstance(hook, ValidationHook) and hook.dataset), None)
        if validation:
            self._steps |= set(range(validation.interval, runner.max_iters, validation.interval))
        epochs = runner.max_iters / planned_loop(runner).dataloader_iterator.steps_of_epoch(0)
        number = min(NUM_SAMPLES, max(FEWEST, int(SHARE * epochs * len(training))))
        held = validation.dataset if validation else training
        samples = open_samples(held, max(2, number // get_world_size()))
        number = min(all_gather_object(len(samples)))  # every rank computes as often, for ZeRO-3
        if number >= 2:
            self._samples = sorted(samples[:number], key=lambda sample: sample["num_tiles"])

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Measures where it is time."""
        step = runner.iter + 1
        if not self._samples or step not in self._steps:
            return
        with undisturbed(runner):
            batch_size = runner.cfg.train_dataloader.get("batch_size", 1)
            self._last = measure(unwrap(runner.model), self._samples, batch_size)
        runner.visualizer.add_scalars(self._last.scalars(), step=step)
        runner.logger.info(f"images after step {step:,}: {self._last}")
        if is_main_process() and self._last.low <= 0 and step >= WHEN[0] * runner.max_iters:
            runner.logger.warning(
                f"After step {step:,} the model has not learned to look: its answers are as likely with other images. "
                "If this stays, check that answers need their images (xtp check CONFIG --step 1); where the norm of "
                "image tokens is far above that of words, lower projector_lr"
            )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds ``image_gain``, the last result, to what is saved."""
        if self._last is not None:
            checkpoint["image_gain"] = self._last.scalars()


def open_samples(dataset: MultimodalDataset, number: int) -> list[dict]:
    """This rank's samples with different images, spread over the dataset; fewer where it has no more."""
    found: list[dict] = []
    tries = np.linspace(0, len(dataset), 4 * number * get_world_size(), endpoint=False, dtype=int)
    for index in dict.fromkeys(tries[get_rank() :: get_world_size()].tolist()):
        if len(found) == number:
            break
        sample = dataset[index]
        if "dropped" in sample or not sample["num_tiles"] or not (sample["labels"][1:] >= 0).any():
            continue
        if not any(torch.equal(sample["tiles"], other["tiles"]) for other in found):
            found.append(sample)
    return found


@torch.no_grad()
def measure(network, samples: Sequence[dict], batch_size: int) -> ImageGain:
    """The gain over the samples of all ranks; each rank has as many."""
    exchanged = [
        sample | {"tiles": other["tiles"][torch.arange(sample["num_tiles"]) % other["num_tiles"]]}
        for sample, other in zip(samples, [*samples[1:], samples[0]], strict=True)
    ]
    with measured_norms(network) as norms:
        own, tokens = losses(network, samples, batch_size)
    gathered = all_gather_object((np.stack([own, losses(network, exchanged, batch_size)[0], tokens]), norms))
    sums, counts = sum(norms for _, norms in gathered).T
    return ImageGain.of(*np.concatenate([rows for rows, _ in gathered], axis=1), (sums / counts).tolist())


@contextmanager
def measured_norms(network) -> Iterator[np.ndarray]:
    """Sums of norms and their counts ``[2, 2]`` of the projector's outputs and of word embeddings, while it is open."""
    found = np.zeros((2, 2))

    def add(row: int, vectors: torch.Tensor) -> None:
        found[row] += vectors.float().norm(dim=-1).sum().item(), vectors.shape[:-1].numel()

    def of_words(_, args, output) -> None:
        add(1, output[args[0] != network.img_context_token_id])

    projector, embeddings = network.parts()["projector"], network.model.get_input_embeddings()
    handles = [projector.register_forward_hook(lambda _, __, output: add(0, output))]
    handles.append(embeddings.register_forward_hook(of_words))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def losses(network, samples: Sequence[dict], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of cross entropy (float64) and supervised tokens of each sample."""
    sums, tokens = [], []
    for start in range(0, len(samples), batch_size):
        found, counts = losses_of_batch(network, collate(samples[start : start + batch_size]))
        sums += found[: len(counts)]
        tokens += counts
    return np.array(sums), np.array(tokens)
