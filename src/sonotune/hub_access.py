"""Whether the model hub answers, asked once a process and within seconds.

The hub's own client tries an address that does not answer six times, for half a minute a file.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from typing import Final

from sonotune.errors import first_line

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0


def why_unreachable() -> str | None:
    """Why the hub cannot be asked; None where it answers, whatever it says.

    Where it does not answer, its client is set to work offline for the rest of the process: what was fetched earlier is
    found in the cache at once, and nothing else is waited for. `HF_HUB_OFFLINE`, `HF_ENDPOINT` and proxies count.
    """
    from huggingface_hub import constants  # noqa: PLC0415  (half a second, and most models are folders)

    return _asked(constants.ENDPOINT)


@functools.cache
def _asked(endpoint: str) -> str | None:
    from huggingface_hub import constants, get_session  # noqa: PLC0415

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=TIMEOUT_S)
        except Exception as error:  # noqa: BLE001  (the client's HTTP library is not ours to know)
            answers.append(first_line(error))
        else:
            answers.append(None)

    # Looking a name up has no time limit of its own, so the question is left alone where it takes longer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    reason = answers[0] if answers else f"no answer within {TIMEOUT_S:g} s"
    if reason is None:
        return None
    logger.info("the hub %s does not answer (%s): looking for copies on this machine alone", endpoint, reason)
    constants.HF_HUB_OFFLINE = True
    if (datasets := sys.modules.get("datasets")) is not None:
        datasets.config.HF_HUB_OFFLINE = True  # a copy made when it was imported
    return f"{endpoint} cannot be reached ({reason})"
