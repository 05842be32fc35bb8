"""Runs GGUF files with llama.cpp, through the package ``xllamacpp``, on the CPU."""

import json
import secrets

from tests.openai_messages import image_part


class LlamaCpp:
    """A model of two GGUF files, as exact as it gets: float32 keys and values, no flash attention."""

    def __init__(self, model, mmproj):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.mmproj.path = str(model), str(mmproj)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 8192, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        # It opens a port, which nothing here uses: to this machine alone, behind a key that nobody knows.
        params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [secrets.token_hex(16)]
        params.warmup, params.verbosity = False, 0
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(params)

    def complete(self, parts, max_new_tokens):
        """The server's greedy answer to a message of ``("text" or "image", it)``, and the prompt's tokens."""
        content = [image_part(it) if kind == "image" else {"type": "text", "text": it} for kind, it in parts]
        request = {"messages": [{"role": "user", "content": content}], "max_tokens": max_new_tokens, "temperature": 0}
        request |= {"logprobs": True, "top_logprobs": 20, "cache_prompt": False}
        reply = self._server.handle_chat_completions(request)
        reply = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
        return reply["choices"][0], reply["usage"]["prompt_tokens"]


def likeliest(choice):
    """Log probability by id of the likeliest first tokens of an answer."""
    return {each["id"]: each["logprob"] for each in choice["logprobs"]["content"][0]["top_logprobs"]}
