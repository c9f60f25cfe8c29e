"""A worker process: `python -m benchmarks.work PEER SETTINGS`; see Peer.command for how it is talked to."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading

from benchmarks.peer import every_peer


def _end_with_the_harness() -> None:
    """Nobody measures a worker whose harness is gone, however that went."""
    while sys.stdin.readline():
        pass
    os._exit(0)


def main() -> None:
    """Gets everything imported, waits for the word, works."""
    name, settings = sys.argv[1:]
    peer = every_peer()[name]
    given = json.loads(settings)
    print("ready", flush=True)
    # Nobody reads stdout from now on: a library that logs there would fill the pipe and stand still.
    os.dup2(2, 1)
    if not sys.stdin.readline():
        return
    threading.Thread(target=_end_with_the_harness, daemon=True).start()
    asyncio.run(peer.work(os.environ["PGRECALL_BENCH_DSN"], given))


if __name__ == "__main__":
    main()
