"""What is shown of a batch is what the batch holds."""

from xtuner_plugins.audit.show_batch import describe_batch, split_batch
from xtuner_plugins.datasets import MultimodalDataset, PreferenceDataset, collate, collate_packed
from xtuner_plugins.datasets.left_out import FILLER, FILLER_INDEX
from xtuner_plugins.datasets.preference import collate_pairs

PROMPT = r"    <|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
IMAGE = PROMPT.format(r"<img>(64 image tokens)</img>\nWhere?") + r"[It is.<|im_end|>]\n"
TEXT = PROMPT.format("What?") + r"[No.<|im_end|>]\n"
PAIR = PROMPT.format("What?") + r" chosen: [Yes.<|im_end|>]\n rejected: [No.<|im_end|>]\n"
OF_ROWS = "2 x 90 tokens, 69 of them padding, 9 learned; 4 tiles; 2 samples"
OF_PACK = "1 x 150 tokens, 39 of them padding, 9 learned; 4 tiles; 2 samples"


def test_samples_pairs_and_a_filler(data_base, write_data, make_image, qa, tmp_path):
    records = [qa("Where?", "It is.", image="b.png", system="S"), qa("What?", "No.", system="S"), qa(image="none.png")]
    settings = {"dataset_settings": [{"loss_weight": 2}], "on_bad_sample": "skip"}
    dataset = MultimodalDataset(str(data_base), [write_data(records)], make_image("b.png", 360, 120), **settings)
    samples = [dataset[index] for index in range(3)]
    for batch, head, place in (
        (collate(samples), OF_ROWS, "row 1 from 0"),
        (collate_packed(samples, pad_to=150), OF_PACK, "row 0 from 90"),
    ):
        shown = "\n".join(describe_batch(batch, dataset.tokenizer)).replace(f"{tmp_path}/", "").split("\n")
        assert shown[:2] == [head, "  row 0 from 0: data.jsonl:1 [data] 90 tokens (5 learned), 4 tiles, weight 2"]
        assert shown[2:4] == [IMAGE, f"  {place}: data.jsonl:2 [data] 21 tokens (4 learned), 0 tiles, weight 2"]
        missing = "data.jsonl:3: images/none.png: no such image; correct the name or the image folder"
        assert shown[4:] == [TEXT, f"  left out, image_missing: {missing}"]
        parts = split_batch(batch)
        assert [part.tiles.tolist() for part in parts] == [sample["tiles"].tolist() for sample in samples[:2]]
    pair = {"question": "What?", "chosen": "Yes.", "rejected": "No.", "system": "S"}
    pairs = PreferenceDataset(str(data_base), write_data([pair] * 2, "pairs.jsonl"))
    assert describe_batch(collate_pairs(list(pairs)), dataset.tokenizer)[2::2] == [PAIR, PAIR]
    filler = ["1 x 1 tokens, 0 of them padding, 0 learned; 0 tiles; 1 samples", f"  {FILLER}"]
    assert describe_batch(collate_packed([dataset[FILLER_INDEX]]), dataset.tokenizer) == filler
