"""The process behind MathVerify: one JSON line in, one out. Run by its path, so that it starts without torch.

``{"answer": ..., "reference": ..., "seconds": 3.0}`` -> ``{"right": true}`` or ``{"error": "..."}``. What takes longer
than its seconds ends this process: a timer whose signal nobody handles, which no loop in Python or C can outlive.
"""

import json
import logging
import resource
import signal
import sys

MOST_BYTES = 4 << 30  # of address space: a number with a billion digits is an error here, not the end of the machine


def main() -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    from math_verify import parse, verify

    out, sys.stdout = sys.stdout, sys.stderr  # whatever a parser prints must not look like an answer
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, task["seconds"])
        try:  # without its own timeouts, which work in some threads and hang in others
            gold, given = (parse(text, parsing_timeout=0) for text in (anchored(task["reference"]), task["answer"]))
            reply = {"right": bool(verify(gold, given, timeout_seconds=0))} if gold else {"error": "reference"}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=out, flush=True)


def anchored(reference: str) -> str:
    """A reference is mathematics as a whole: without an anchor only a plain number of it would be seen."""
    return reference if "$" in reference or "\\boxed" in reference else f"${reference}$"


main()
