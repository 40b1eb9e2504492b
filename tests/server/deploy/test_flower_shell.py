"""Flower's command line whose imports are done once: what each command says, and that none leaves anything behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.deploy.flower_shell import FlowerShell

STUB = """
import os, sys
from server.deploy.flower_shell import serve

seen = []

def command(arguments):
    seen.append(arguments)
    print(len(seen), *arguments, flush=True)
    os.write(2, b"heard")
    if arguments == ["exit"]:
        sys.exit(7)
    if arguments == ["words"]:
        sys.exit("in words")
    if arguments == ["break"]:
        raise ValueError("broken")
    if arguments == ["die"]:
        os.kill(os.getpid(), 9)

serve(command, sys.stdin.buffer, sys.stdout.buffer)
"""


def test_each_command_has_its_own_process_output_and_end() -> None:
    asked = [["a", "b"], ["exit"], ["words"], ["break"], ["die"], ["ümlaut\n"]]
    done = subprocess.run([sys.executable, "-c", STUB], input="".join(json.dumps(line) + "\n" for line in asked),
                          capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer[0] for answer in answers] == [0, 7, 1, 1, -9, 0]
    assert all(answer[1].startswith("1 ") for answer in answers)  # nobody has seen another's command
    assert answers[3][2] == "heardValueError: broken" and answers[5][1] == "1 ümlaut\n\n"
    assert done.stderr == ""


def test_flowers_own_commands_run_one_after_another(tmp_path: Path) -> None:
    environment = {"PATH": os.defpath, "FLWR_HOME": str(tmp_path / "home"), "FLWR_DISABLE_UPDATE_CHECK": "1"}
    with FlowerShell(environment=environment, folder=tmp_path) as shell:
        first = shell.run(["--version"], timeout_s=120.0)
        assert first[0] == 0 and first[1].startswith("Flower version")
        unknown = shell.run(["supernode", "ls", "nowhere", "--format", "json"], timeout_s=120.0)
        assert json.loads(unknown[1])["success"] is False
        assert shell.run(["nonsense"], timeout_s=120.0)[0] == 2
        with pytest.raises(TimeoutError):
            shell.run(["--version"], timeout_s=0.0)


def test_a_shell_that_has_ended_is_a_refusal_in_words(tmp_path: Path) -> None:
    with FlowerShell(environment={}, folder=tmp_path) as shell:
        shell._process.kill()
        shell._process.wait()
        code, _, words = shell.run(["--version"], timeout_s=60.0)
    assert code == 1 and "ended" in words
