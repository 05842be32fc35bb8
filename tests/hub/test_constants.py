"""Shared constants, against those who define them elsewhere."""

from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from xtuner_plugins.hub import constants


def test_ignored_labels_are_those_of_torch():
    assert constants.IGNORE_INDEX == nn.CrossEntropyLoss().ignore_index


def test_normalization_is_imagenets():
    assert list(constants.IMAGENET_MEAN) == IMAGENET_DEFAULT_MEAN
    assert list(constants.IMAGENET_STD) == IMAGENET_DEFAULT_STD


def test_the_nine_tokens_in_the_published_order():
    """Their ids follow from the order in which they are added."""
    published = "<img> </img> <IMG_CONTEXT> <quad> </quad> <ref> </ref> <box> </box>"
    assert " ".join(constants.ADDED_TOKENS) == published
    assert (constants.IMAGE_START, constants.IMAGE_END, constants.IMAGE_CONTEXT) == constants.IMAGE_TOKENS
    assert constants.IMAGE_PLACEHOLDER not in constants.ADDED_TOKENS
