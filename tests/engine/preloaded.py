"""What every training process needs, imported once by the server that forks them: see `forked`.

Importing this module has an effect, because a server can only be prepared by imports: libraries are kept quiet.
"""

from xtuner_plugins.processes import quiet_imports

quiet_imports()

import deepspeed  # noqa: E402, F401
import xtuner.tools.train  # noqa: E402, F401

from xtuner_plugins.engine.launch import train_process  # noqa: E402, F401
