"""The table of templates, spelled out."""

import pytest

from xtuner_plugins.hub import get_conv_template
from xtuner_plugins.hub.conversation import TEMPLATES

V2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
V2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"

PROMPTS = {
    "internvl2_5": f"<|im_start|>system\n{V2_5}<|im_end|>\n<|im_start|>user\nA<|im_end|>\n"
    "<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "Hermes-2": f"<|im_start|>system\n{V2}<|im_end|><|im_start|>user\nA<|im_end|>"
    "<|im_start|>assistant\nB<|im_end|><|im_start|>user\nC<|im_end|><|im_start|>assistant\n",
    "internlm2-chat": f"<|im_start|>system\n{V2}<|im_end|><|im_start|>user\nA<|im_end|>"
    "<|im_start|>assistant\nB<|im_end|><|im_start|>user\nC<|im_end|><|im_start|>assistant\n",
    "phi3-chat": f"<|system|>\n{V2}<|end|><|user|>\nA<|end|><|assistant|>\nB<|end|><|user|>\nC<|end|><|assistant|>\n",
    "llama3-chat": "<|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nC<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    "\n\n",
    "vicuna_v1.1": "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: A ASSISTANT: B</s>USER: C ASSISTANT:",
}


def test_prompt():
    for name in TEMPLATES:
        conversation = get_conv_template(name)
        user, assistant = conversation.roles
        for role, message in ((user, "A"), (assistant, "B"), (user, "C"), (assistant, None)):
            conversation.append_message(role, message)
        assert conversation.get_prompt() == PROMPTS[name]
        assert conversation.name == name
    with pytest.raises(ValueError, match="unknown conversation template 'alpaca'; known are Hermes-2, .*phi3-chat"):
        get_conv_template("alpaca")


def test_stop_token_is_the_separator_without_line_break():
    assert get_conv_template("internvl2_5").stop_token == "<|im_end|>"
    assert get_conv_template("phi3-chat").stop_token == "<|end|>"
    assert get_conv_template("vicuna_v1.1").stop_token == "</s>"


def test_system_message_can_be_replaced_or_left_out():
    conversation = get_conv_template("internvl2_5")
    conversation.append_message(conversation.roles[0], "A")
    conversation.system_message = "Use {braces} freely."
    assert conversation.get_prompt().startswith("<|im_start|>system\nUse {braces} freely.<|im_end|>\n<|im_start|>user")
    conversation.system_message = None
    assert conversation.get_prompt() == "<|im_start|>user\nA<|im_end|>\n"
