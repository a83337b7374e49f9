"""A process with two others that would never end; it prints their ids and waits to be stopped."""

import os
import sys

from misotune.processes import Processes


def toil(argument, jobs, send):
    send(os.getpid())
    while True:
        pass


if __name__ == "__main__":
    processes = Processes(toil, [("first", None), ("second", None)], cure="go on")
    try:
        seen = []
        while len(seen) < 2:
            seen.extend(pid for _, pid in processes.receive())
        sys.stdout.write(f"{seen[0]} {seen[1]}\n")
        sys.stdout.flush()
        processes.receive()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
    finally:
        processes.close()
