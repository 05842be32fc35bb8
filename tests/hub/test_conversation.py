"""The table of templates, spelled out, and the constants that others define."""

import pytest
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from xtuner_plugins.hub import constants
from xtuner_plugins.hub.conversation import TEMPLATES, get_conv_template

V2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
V2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
VICUNA = "A chat between a curious user and an artificial intelligence assistant. "
VICUNA += "The assistant gives helpful, detailed, and polite answers to the user's questions."


def chat(system, end, *, before="<|im_start|>", behind="\n"):
    """A turn A, its answer B and a turn C: roles between two texts, each turn ended."""
    turns = [("system", system)] * bool(system) + [("user", "A"), ("assistant", "B"), ("user", "C")]
    return "".join(before + role + behind + text + end for role, text in turns) + before + "assistant" + behind


HEADERS = dict(before="<|start_header_id|>", behind="<|end_header_id|>\n\n")
PROMPTS = {  # with the stop token
    "internvl2_5": (chat(V2_5, "<|im_end|>\n"), "<|im_end|>"),
    "Hermes-2": (chat(V2, "<|im_end|>"), "<|im_end|>"),
    "internlm2-chat": (chat(V2, "<|im_end|>"), "<|im_end|>"),
    "phi3-chat": (chat(V2, "<|end|>", before="<|", behind="|>\n"), "<|end|>"),
    "llama3-chat": (chat(None, "<|eot_id|>", **HEADERS), "<|eot_id|>"),
    "vicuna_v1.1": (VICUNA + " USER: A ASSISTANT: B</s>USER: C ASSISTANT:", "</s>"),
}


def test_prompts_and_constants():
    """Ids of the nine tokens follow from the order in which they are added."""
    for name in TEMPLATES:
        conversation = get_conv_template(name)
        user, assistant = conversation.roles
        for role, message in ((user, "A"), (assistant, "B"), (user, "C"), (assistant, None)):
            conversation.append_message(role, message)
        assert (conversation.get_prompt(), conversation.stop_token, conversation.name) == (*PROMPTS[name], name)
    conversation = get_conv_template("internvl2_5", system_message="Use {braces} freely.")
    assert conversation.get_prompt() == "<|im_start|>system\nUse {braces} freely.<|im_end|>\n"
    assert get_conv_template("internvl2_5", system_message=None).get_prompt() == ""
    with pytest.raises(ValueError, match="unknown conversation template 'alpaca'; known are Hermes-2, .*phi3-chat"):
        get_conv_template("alpaca")
    assert constants.IGNORE_INDEX == nn.CrossEntropyLoss().ignore_index
    assert [*constants.IMAGENET_MEAN, *constants.IMAGENET_STD] == IMAGENET_DEFAULT_MEAN + IMAGENET_DEFAULT_STD
    published = "<img> </img> <IMG_CONTEXT> <quad> </quad> <ref> </ref> <box> </box>"
    assert " ".join(constants.ADDED_TOKENS) == published
