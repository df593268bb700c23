"""What holds for every test, wherever it is started from."""

import signal

from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that tests start.

    A test run that was put into the background by a shell ignores SIGINT, and so would every process under it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
