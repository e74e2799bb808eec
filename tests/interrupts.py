"""A process that hears Ctrl-C, wherever the tests themselves run: what a shell starts in the background ignores it."""

import signal


def hears_ctrl_c() -> None:
    """For `preexec_fn` of `subprocess.Popen`: Ctrl-C does again what it does by itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
