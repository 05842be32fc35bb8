"""AdamW of bitsandbytes, which stays paged when it resumes."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb

MOMENTS = ("state1", "state2")


class BitsAndBytesAdamW(bnb.optim.AdamW):
    """As bitsandbytes' class, which would read the checkpoint of a paged optimizer into plain memory of the GPU."""

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As bitsandbytes' method; then the moments of a paged optimizer move into pages."""
        super().load_state_dict(state_dict, *args, **kwargs)
        if not self.is_paged:
            return
        for parameter, state in self.state.items():
            for key in MOMENTS:
                pages = self.get_state_buffer(parameter, dtype=state[key].dtype)
                state[key] = pages.copy_(state[key])
