"""Allow connections to this machine only, for tests and for the processes that they start."""

import socket

HOME = ("127.0.0.1", "localhost", "::1")


def at_home_only(connect):
    """Wrap `socket.connect` or `connect_ex` so that it fails for any other machine."""

    def checked(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in HOME:
            raise AssertionError(f"a test tried to connect to {address}")
        return connect(self, address, *rest)

    return checked


def stay_home(set_attribute=setattr) -> None:
    """Allow no other connections from now on; `set_attribute` may be pytest's, which undoes it later."""
    for name in ("connect", "connect_ex"):
        set_attribute(socket.socket, name, at_home_only(getattr(socket.socket, name)))
