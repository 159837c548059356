"""How a script ends."""

from __future__ import annotations

import sys
from collections.abc import Callable


def exit_status(
    script: str,
    run: Callable[[], object],
    *refusals: type[Exception],
    stopped: Callable[[], str] = lambda: "stopped",
) -> int:
    """Run, and say in a line why it ended early: 2 for a refusal or OSError, 130 for Ctrl-C.

    `stopped` gives what is said then.
    """
    try:
        run()
    except (*refusals, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{stopped()}", file=sys.stderr)
        return 130
    return 0
