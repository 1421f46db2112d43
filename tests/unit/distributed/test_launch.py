from __future__ import annotations

import os
import select
import signal

from cktk.distributed.launch import end_with_launcher


def test_a_process_ends_when_its_launcher_is_killed() -> None:
    alive, still = os.pipe()
    told, tell = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        if os.fork() == 0:
            end_with_launcher()
            os.close(alive)
            os.write(tell, str(os.getpid()).encode())
        else:
            os.close(still)
        signal.pause()
    os.close(still)
    worker = int(os.read(told, 20))
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    # The worker alone holds the other end of the pipe: the end of file comes with its death.
    ended, _, _ = select.select([alive], [], [], 10)
    if not ended:
        os.kill(worker, signal.SIGKILL)
    assert ended
