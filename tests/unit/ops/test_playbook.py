"""What is left of a playbook that was interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clusterkit.ops import playbook


@pytest.mark.parametrize(
    ("program", "mark", "waits"),
    [("ansible-playbook", "one", True), ("ansible-playbook", "two", False), ("ssh", "one", False)],
    ids=["a step of the run", "a step of another run", "a connection that is kept"],
)
def test_after_ctrl_c_it_is_waited_for(tmp_path: Path, program: str, mark: str, waits: bool) -> None:
    (tmp_path / program).write_text("import time; print(flush=True); time.sleep(60)")
    command = [sys.executable, str(tmp_path / program)]
    environment = {**os.environ, "CLUSTERKIT_RUN": mark}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as step:
        assert step.stdout
        step.stdout.readline()
        assert playbook._under_way("one") == waits
        began = time.monotonic()
        playbook._await_end("one", 0.5)
        assert (time.monotonic() - began >= 0.5) == waits
        step.kill()
    playbook._await_end("one", 60)
    assert time.monotonic() - began < 10, "it has ended"
