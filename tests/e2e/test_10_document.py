"""docs/install.md, word by word: the commands are read out of the page and run in its order."""

import os
import re
import shutil
import subprocess

import kube

FOLDER = "/var/lib/minimax-m1"


def test_the_commands_of_the_installation_page_work_as_they_stand():
    with open(os.path.join(kube.REPOSITORY, "docs/install.md"), encoding="utf-8") as file:
        blocks = re.findall(r"^```sh\n(.*?)^```", file.read(), re.M | re.S)
    assert len(blocks) >= 5, "the page lost its commands"
    had_folder = os.path.exists(FOLDER)
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "\n".join(blocks)
    try:
        done = subprocess.run(["bash", "-xc", script], capture_output=True, text=True, timeout=900, cwd=kube.REPOSITORY)
        assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
        assert "Number of desired pods" in done.stdout, "the demo's answer to its own question"
    finally:
        if not had_folder:
            shutil.rmtree(FOLDER, ignore_errors=True)
