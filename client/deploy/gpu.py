"""Looks at the GPU as the trainer will see it, in a process of its own so that its caller, doctor, needs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from shared_model.doctor.check import Check, amber, green, red
from shared_model.doctor.machine import GIB

PROBE_S = 120.0  # a first start of CUDA on a busy machine takes up to half a minute
LEAST_FREE = 8 * GIB  # the full model in the chunks that the trainer takes: 7 GiB, 4 with privacy and `loop`
_PROBE = """
import json, torch
seen = {"torch": torch.__version__, "cuda": torch.version.cuda, "names": [], "free": [], "error": ""}
try:
    for number in range(torch.cuda.device_count()):
        torch.cuda.set_device(number)
        x = torch.ones(64, 64, device="cuda")
        assert float((x @ x).sum()) == 64.0 ** 3
        seen["names"].append(torch.cuda.get_device_name(number))
        seen["free"].append(torch.cuda.mem_get_info(number)[0])
except Exception as error:
    seen["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
print(json.dumps(seen))
"""


@dataclass(frozen=True, kw_only=True)
class TorchSees:
    """What torch says. cuda: version that it was built for, None for a CPU build. free: bytes of each GPU."""

    torch: str
    cuda: str | None
    names: Sequence[str] = ()
    free: Sequence[int] = ()
    error: str = ""


def gpu(wanted: str, seen: TorchSees, driver: str | None) -> Check:
    """The GPU against the site's setting.

    Args:
        wanted: `device` of the trainer's configuration.
        driver: version of NVIDIA's driver; None: there is none.
    """
    usable = len(seen.names) if not seen.error else 0
    if wanted == "cpu":
        return green("gpu", "GPU", "not used: the trainer's configuration says `cpu`")
    if not usable:
        if driver is None and wanted == "auto":
            return green("gpu", "GPU", "there is none; the trainer computes on the CPU")
        words, to_do = _why_none(seen, driver)
        if wanted == "auto":
            return amber("gpu", "GPU", f"{words}; the trainer would compute on the CPU", to_do=to_do)
        return red("gpu", "GPU", words, to_do=to_do)
    number = int(wanted.partition(":")[2] or 0) if wanted.startswith("cuda") else 0
    if number >= usable:
        return red("gpu", "GPU", f"the configuration says `{wanted}`, torch sees {usable}",
                   to_do="set `device` to `auto`, `cuda` or a number that is there")  # fmt: skip
    words = (f"{seen.names[number]}, {seen.free[number] / GIB:.0f} GiB free, driver {driver or 'not told'}, "
             f"torch {seen.torch}")  # fmt: skip
    if seen.free[number] < LEAST_FREE:
        return amber("gpu", "GPU", words, to_do=f"end what else uses it: {LEAST_FREE / GIB:.0f} GiB should be free")
    return green("gpu", "GPU", words)


def _why_none(seen: TorchSees, driver: str | None) -> tuple[str, str]:
    if driver is None:
        return "NVIDIA's driver is not installed, or its `nvidia-smi` is not found", "install NVIDIA's driver"
    if seen.cuda is None:
        return (f"driver {driver} is here, but torch {seen.torch} is a build for the CPU",
                "install the CUDA build of the same torch version")  # fmt: skip
    if seen.error:
        return (f"torch {seen.torch} for CUDA {seen.cuda} fails on driver {driver}: {seen.error}",
                "install a driver that serves this CUDA version, and let the trainer's user open /dev/nvidia*")
    return (f"torch {seen.torch} sees no GPU though driver {driver} is here",
            "let the trainer's user (or its container) open /dev/nvidia*, and check CUDA_VISIBLE_DEVICES")


def torch_sees() -> TorchSees:
    """Ask torch in a process of its own: it starts CUDA, computes one product on each GPU, and ends."""
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_S, check=True)
        return TorchSees(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return TorchSees(torch="", cuda="", error=f"no answer within {PROBE_S:.0f} s")
    except (subprocess.CalledProcessError, OSError, ValueError, IndexError, TypeError):
        return TorchSees(torch="", cuda="", error="torch cannot be started")


def driver_version() -> str | None:
    """NVIDIA's driver, as nvidia-smi tells it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, timeout=30.0, check=True, text=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None
