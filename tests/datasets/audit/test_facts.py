import numpy as np

from xtuner_plugins.datasets import MultimodalDataset
from xtuner_plugins.datasets.audit.facts import IMAGE, REFUSES, Facts, gather, joined
from xtuner_plugins.datasets.audit.looking import UncutMedia, see
from xtuner_plugins.datasets.audit.looks import KnownImages
from xtuner_plugins.datasets.images.media import MAX_PIXELS


def seen(dataset, row):
    return row, see(dataset, 0, row, UncutMedia(8, MAX_PIXELS, KnownImages()))


def test_what_is_kept_of_records(data_base, write_data, make_image, qa, tmp_path):
    folder = make_image("a.png", 100, 90)
    make_image("b.png", 360, 120)
    records = [
        qa("What?", "A cat.", image="a.png"),
        qa("what ?", "I'm sorry, I cannot see it.", image="b.png"),
        qa("What?", "A  CAT", image="a.png"),
    ]
    dataset = MultimodalDataset(str(data_base), write_data(records), folder)
    facts = Facts()
    facts.add(gather(seen(dataset, row) for row in (0, 1)))
    facts.add(gather([seen(dataset, 2)]))
    table = facts.records
    assert table["row"].tolist() == [0, 1, 2] and table["tiles"].tolist() == [1, 4, 1]
    assert table["tokens"].tolist() == [len(dataset[row]["labels"]) for row in range(3)]
    assert table["whole"][0] == table["whole"][2] != table["whole"][1]
    assert facts.images["pixels"][0] == facts.images["pixels"][2] != facts.images["pixels"][1]
    assert (
        facts.answers["flags"].tolist() == [0, REFUSES, 0] and facts.answers["answer"][0] == facts.answers["answer"][2]
    )
    assert table.itemsize + facts.answers.itemsize + facts.images.itemsize < 150


def test_nothing_is_kept_of_nothing():
    assert len(Facts().images) == 0 and Facts().images.dtype == IMAGE
    tables, numbers = joined([np.zeros(2, IMAGE), np.zeros(0, IMAGE), np.zeros(1, IMAGE)])
    assert len(tables) == 3 and numbers.tolist() == [0, 0, 2]
