"""What every training process needs, imported once by the server that forks them: see `runs`.

Importing this module has an effect, because a server can only be prepared by imports: libraries are kept quiet.
"""

from ..cli.terminal import quiet_imports

quiet_imports()

import deepspeed  # noqa: E402, F401
import xtuner.tools.train  # noqa: E402, F401

from ..cli import train_process  # noqa: E402, F401
