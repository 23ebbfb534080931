"""Code that needs a process of its own: a fresh import, an environment, or a likely crash."""

import os
import subprocess
import sys
import textwrap


def python(source, **environment):
    """Run `source` in a new process; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
