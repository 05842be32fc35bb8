"""Conversation templates: the prompt of every exported model, as a table.

Training renders its samples from the same table, so `chat` prompts a model as it was trained. A prompt of the template
`internvl2_5`, with one turn answered and one open::

    <|im_start|>system\\n{system message}<|im_end|>\\n
    <|im_start|>user\\n{question}<|im_end|>\\n
    <|im_start|>assistant\\n{answer}<|im_end|>\\n
    <|im_start|>user\\n{question}<|im_end|>\\n
    <|im_start|>assistant\\n
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Conversation:
    """A template and the turns so far."""

    name: str  # key in the table of templates
    system_template: str  # first text, with the field `{system_message}`
    system_message: str | None  # value of that field; `None` leaves out the system turn
    roles: tuple[str, str]  # prefixes of the user's and of the assistant's messages
    sep: str  # suffix of every answer
    question_sep: str  # suffix of the system turn and of every question
    answer_prefix: str = ""  # what the model writes between an open turn and its answer
    messages: list = dataclasses.field(default_factory=list)  # `[role, message]`; `None` leaves the turn open

    @property
    def stop_token(self) -> str:
        """The one token that ends an answer."""
        return self.sep.strip()

    def append_message(self, role: str, message: str | None) -> None:
        """Adds a turn; `None` as message opens it without ending it."""
        self.messages.append([role, message])

    def get_parts(self) -> list[tuple[str, str]]:
        """The conversation as `(kind, text)`; kinds are `template` (fixed texts), `system`, `question`, `answer`."""
        parts = []
        if self.system_message is not None:
            before, _, after = self.system_template.partition("{system_message}")
            parts += [("template", before), ("system", self.system_message), ("template", after + self.question_sep)]
        for role, message in self.messages:
            parts.append(("template", role))
            if message is not None:
                is_answer = role == self.roles[1]
                parts.append(("answer", self.answer_prefix + message) if is_answer else ("question", message))
                parts.append(("template", self.sep if is_answer else self.question_sep))
        return parts

    def get_prompt(self) -> str:
        """The whole conversation as one text."""
        return "".join(text for _, text in self.get_parts())


INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

CHATML_ROLES = ("<|im_start|>user\n", "<|im_start|>assistant\n")
PHI3_ROLES = ("<|user|>\n", "<|assistant|>\n")
LLAMA3_ROLES = tuple(f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
VICUNA_ROLES = ("USER: ", "ASSISTANT:")

# name: (what stands before the system message, system message or None for no such turn, roles, separator after an
# answer[, separator after the system message and a question, what the model writes before an answer])
TEMPLATES = {
    "Hermes-2": ("<|im_start|>system\n", INTERNVL2_SYSTEM, CHATML_ROLES, "<|im_end|>"),
    "internlm2-chat": ("<|im_start|>system\n", INTERNVL2_SYSTEM, CHATML_ROLES, "<|im_end|>"),
    "phi3-chat": ("<|system|>\n", INTERNVL2_SYSTEM, PHI3_ROLES, "<|end|>"),
    "llama3-chat": ("<|start_header_id|>system<|end_header_id|>\n\n", None, LLAMA3_ROLES, "<|eot_id|>"),
    "internvl2_5": ("<|im_start|>system\n", INTERNVL2_5_SYSTEM, CHATML_ROLES, "<|im_end|>\n"),
    "vicuna_v1.1": ("", VICUNA_SYSTEM, VICUNA_ROLES, "</s>", " ", " "),
}


def own_system(fields: dict) -> dict[str, str | None]:
    """`system_message` of a model's config, if it has one in place of its template's, to be passed on by name.

    The official repository reads the same field, so its `None`, which some releases hold, says nothing; that a prompt
    has no system turn is written as `no_system_message`.
    """
    if fields.get("no_system_message"):
        return {"system_message": None}
    own = fields.get("system_message")
    return {} if own is None else {"system_message": own}


def get_conv_template(name: str, **own: str | None) -> Conversation:
    """A fresh, empty conversation of the template `name`.

    Args:
        name: Key in the table of templates.
        own: `system_message` in place of the template's; `None` leaves out the system turn (see `own_system`).

    Raises:
        ValueError: No such template; the message lists those that exist.
    """
    if name not in TEMPLATES:
        raise ValueError(f"unknown conversation template {name!r}; known are {', '.join(sorted(TEMPLATES))}")
    system_prefix, system_message, roles, sep, *others = TEMPLATES[name]
    empty = Conversation(name, system_prefix + "{system_message}", system_message, roles, sep, *(others or [sep]))
    return dataclasses.replace(empty, **own)
