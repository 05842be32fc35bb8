"""The public methods of a chat model: `chat`, `batch_chat`, and the prompts that they give to the network."""

import torch

from .constants import IMAGE_PLACEHOLDER
from .conversation import get_conv_template
from .prompts import PromptEncoder, left_padded, prompt_parts, token_id


class ChatMethods:
    """The part of `InternVLChatModel` that handles conversations; the rest handles tensors."""

    def stop_token_ids(self):
        """Ids at which `generate` stops by itself: those of `generation_config.json`, as in serving engines."""
        ids = getattr(getattr(self, "generation_config", None), "eos_token_id", None)
        if ids is None:
            return []
        return list(ids) if isinstance(ids, (list, tuple)) else [ids]

    def build_prompt_ids(self, tokenizer, question, num_patches_list=(), history=()):
        """The model's input as token ids, exactly as in training (see `prompts.py`): past turns, question, open answer.

        Args:
            tokenizer: The model's tokenizer.
            question: May hold `<image>` for each image.
            num_patches_list: Tiles of each image, in the order of the placeholders.
            history: Past `(question, answer)` pairs; their questions may hold placeholders, too.

        Raises:
            ValueError: The tokenizer lacks a token.
        """
        encoder = PromptEncoder(tokenizer, self.num_image_token)
        return encoder.encode(self.prompt_parts(question, num_patches_list, history))

    def prompt_parts(self, question, num_patches_list=(), history=()):
        """The model's input as `(kind, content)`; arguments as of `build_prompt_ids`, an image's content its tiles."""
        conversation = get_conv_template(self.template, system_message=self.system_message)
        for turn in (*history, (question, None)):
            for role, text in zip(conversation.roles, turn, strict=True):
                conversation.append_message(role, text)
        return prompt_parts(conversation, num_patches_list)

    def chat(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config,
        history=None,
        return_history=False,
        num_patches_list=None,
        verbose=False,
    ):
        """Answers a question, about images or not, as the next turn of a conversation.

        Args:
            tokenizer: The model's tokenizer.
            pixel_values: Tiles [T, 3, S, S] of all images of the conversation, normalized; `None` for text only.
            question: In a first turn with images and without `<image>`, the image goes before it.
            generation_config: Dict of options of `generate`; its `eos_token_id` is set here, to
                `stop_token_ids`, or to the template's stop token where they lack it.
            history: Past `(question, answer)` pairs, as returned with `return_history`.
            return_history: Also return the history with this turn.
            num_patches_list: Tiles of each image; one image when `None`.
            verbose: Print question and answer.

        Returns:
            The answer, or `(answer, history)`.

        Raises:
            ValueError: Tiles don't add up, placeholders don't fit the images, or the tokenizer lacks a token.
        """
        if history is None and pixel_values is not None and IMAGE_PLACEHOLDER not in question:
            question = IMAGE_PLACEHOLDER + "\n" + question
        num_tiles = 0 if pixel_values is None else pixel_values.shape[0]
        if num_patches_list is None:
            num_patches_list = [num_tiles] if num_tiles else []
        history = [] if history is None else list(history)
        prompts = [(question, num_patches_list, history)]
        answer = self._answer_prompts(tokenizer, pixel_values, prompts, generation_config, verbose)[0]
        history.append((question, answer))
        return (answer, history) if return_history else answer

    def batch_chat(
        self,
        tokenizer,
        pixel_values,
        questions,
        generation_config,
        num_patches_list=None,
        history=None,
        return_history=False,
        verbose=False,
        visual_features=None,
    ):
        """Answers several unconnected questions at once.

        Args:
            tokenizer, pixel_values, generation_config, verbose: As `chat`; with the tiles of all questions in order.
            questions: One text each.
            num_patches_list: For each question the tiles of its image (0: it has none), or a list with the tiles of
                each of its images.
            history, return_history: Not supported.
            visual_features: [T, N, H] in place of `pixel_values`, from `extract_feature`; an image that several
                questions are about is so encoded once.

        Returns:
            The answers.

        Raises:
            NotImplementedError: A history was given or asked for.
            ValueError: As `chat`; or `num_patches_list` hasn't one entry per question.
        """
        if history is not None or return_history:
            raise NotImplementedError("batch_chat keeps no history; use chat, one conversation at a time")
        if num_patches_list is None:
            images = pixel_values if visual_features is None else visual_features
            num_patches_list = [0 if images is None or len(questions) > 1 else len(images)] * len(questions)
        if len(num_patches_list) != len(questions):
            raise ValueError(f"num_patches_list has {len(num_patches_list)} entries for {len(questions)} questions")
        prompts = []
        for question, entry in zip(questions, num_patches_list, strict=True):
            tiles = list(entry) if isinstance(entry, (list, tuple)) else [entry] * bool(entry)
            if tiles and IMAGE_PLACEHOLDER not in question:
                question = IMAGE_PLACEHOLDER + "\n" + question
            prompts.append((question, tiles))
        return self._answer_prompts(tokenizer, pixel_values, prompts, generation_config, verbose, visual_features)

    def _answer_prompts(self, tokenizer, pixel_values, prompts, generation_config, verbose, visual_features=None):
        """Generates for prompts of any lengths and cuts each answer at the template's stop token.

        `prompts` are arguments of `prompt_parts`, whose tiles are those of `pixel_values` or `visual_features`.
        """
        images = pixel_values if visual_features is None else visual_features
        counts = [tiles for _, tiles, *_ in prompts]
        num_tiles, expected = 0 if images is None else len(images), sum(map(sum, counts))
        if num_tiles != expected:
            given = f"num_patches_list = {counts if len(counts) > 1 else counts[0]}"
            raise ValueError(f"pixel_values holds {num_tiles} tiles, but {given} adds up to {expected}")
        generation_config = {} if generation_config is None else generation_config
        stop_token = self.conv_template.stop_token
        stop_id = token_id(tokenizer, stop_token)
        stops = self.stop_token_ids()  # without `stop_id`: defaults of a config class, ids of some other tokenizer
        generation_config["eos_token_id"] = stops if stop_id in stops else [stop_id]
        encoder = PromptEncoder(tokenizer, self.num_image_token)
        self.img_context_token_id = encoder.context_id
        device, padding = self.language_model.device, tokenizer.pad_token_id
        rows = [torch.tensor(encoder.encode(self.prompt_parts(*prompt)), device=device) for prompt in prompts]
        options = {} if padding is None else {"pad_token_id": padding}
        output_ids = self.generate(
            pixel_values=pixel_values,
            input_ids=left_padded(rows, stop_id if padding is None else padding),
            attention_mask=left_padded([torch.ones_like(row) for row in rows]),
            visual_features=visual_features,
            **{**options, **generation_config},
        )
        answers = tokenizer.batch_decode(output_ids, skip_special_tokens=True)
        answers = [answer.split(stop_token)[0].strip() for answer in answers]
        if verbose:
            for (question, *_), answer in zip(prompts, answers, strict=True):
                print(question, answer, sep="\n")
        return answers
