"""A real deployed study, begun by `mammofed server start ... --monitor`, in a real browser: a site loses its power and
is named, it comes back and is seen back; the page's end is not the study's."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from shared_model.messages import weights_sha256
from shared_model.protocol import Protocol
from simulations.engine.deployment import Rehearsal
from simulations.engine.deployment.run import parties
from tests.browser import Sight, chromium
from tests.typed import typed

pytestmark = pytest.mark.slow
VICTIM = "site-02"
HANG_S = 600  # a bound for a machine that is busy
PHASES = [{"name": "all", "rounds": 200, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]
ROWS = "[...document.querySelectorAll('#sites-table tr')]"


def shows(sight: Sight, name: str, kind: str, words: str) -> None:
    """Wait until the page says of a site that it is there (`good`) or not (`bad`), in words that begin so."""
    says = f"row.textContent.startsWith(name) && row.querySelector('.here.{kind}')?.textContent.startsWith(words)"
    sight.page.wait_for_function(f"([name, words]) => {ROWS}.some(row => {says})", arg=[name, words])


def later_round(sight: Sight, after: int) -> int:
    """Wait until the page says another round; which one it says. One may be over between two looks of a busy page."""
    found = sight.page.wait_for_function("""after => {
        const [, number] = document.getElementById('sentence').textContent.match(/round (\\d+) of 200/) || [0, 0];
        return Number(number) > after && Number(number); }""", arg=after)  # fmt: skip
    return int(found.json_value())


@contextmanager
def started(home: Path, study: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`mammofed server start --monitor` as a coordinator types it; gives the page's address, and the process."""
    with typed("server", "start", home, study, "--monitor", "--port", 0, "--no-open") as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        assert said[0].startswith(f"{study} begins."), process.communicate(timeout=HANG_S)
        assert said[1].startswith("Monitor  http://127.0.0.1:"), process.communicate(timeout=HANG_S)
        yield said[1].split()[1], process


def test_a_site_without_power_is_named_and_seen_back(small_study: Callable[..., Any], tmp_path: Path) -> None:
    study = small_study(patients=20, held_out=30, training__phases=PHASES, evaluation__bootstrap=0,
                        federation__quorum=2, federation__deadline_s=600.0)  # fmt: skip
    values = study.protocol.model_dump(mode="json")
    values["initial_weights"]["sha256"] = weights_sha256(study.arrays)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    protocol = Protocol.create(values)
    (run_dir / "protocol.json").write_text(protocol.to_json())
    save_file(dict(study.arrays), run_dir / "initial.safetensors")
    everybody = parties(list(study.files.values()), protocol)
    with Rehearsal(run_dir / "deployment", everybody, timeout_s=HANG_S) as there:
        folder = there.propose(run_dir)
        there.approve(folder.name)
        with chromium() as browser, started(there.hub.folder, folder.name) as (url, command):
            sight = Sight(browser.new_page())
            sight.page.set_default_timeout(1000 * HANG_S)
            sight.page.goto(url)
            first = later_round(sight, 0)  # it comes by itself: the page is not loaded again
            assert later_round(sight, first) > first
            assert sight.page.evaluate("performance.getEntriesByType('navigation').length") == 1
            sight.tab("sites")
            shows(sight, VICTIM, "good", "here")
            killed = time.monotonic()
            there.kill(VICTIM)
            shows(sight, VICTIM, "bad", "silent for")
            row = time.monotonic() - killed
            sight.says(f"{VICTIM} silent for")  # beside the word `stalled`
            said = time.monotonic() - killed
            shows(sight, "site-01", "good", "here")
            sight.shoot(tmp_path, "deployed-site-killed")
            there.bring_back(VICTIM)
            shows(sight, VICTIM, "good", "here")
            back = time.monotonic() - killed - said
            sight.page.wait_for_function("() => !document.getElementById('sentence').textContent.includes('silent')")
            sight.shoot(tmp_path, "deployed-site-back")
            assert sight.complaints == []
            command.send_signal(signal.SIGINT)
            _, last_words = command.communicate(timeout=HANG_S)
            assert (command.returncode, last_words) == (0, "")
            closed = folder.closed()
            words = "no round was closed with the site back and the page ended"
            there.until(lambda: folder.closed() > closed, words, timeout_s=HANG_S)
    print(f"{VICTIM}: silent in its row {row:.1f} s after it was killed and in the sentence {said:.1f} s after (to be "
          f"named within 10); here again {back:.1f} s after it was started")  # fmt: skip
