from __future__ import annotations

import os
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
            os.write(tell, b"ready")
        else:
            os.close(still)
        signal.pause()
    os.close(still)
    assert os.read(told, 5) == b"ready"
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    # The worker alone holds the other end of the pipe: the end of file comes with its death.
    signal.alarm(20)
    assert os.read(alive, 1) == b""
    signal.alarm(0)
