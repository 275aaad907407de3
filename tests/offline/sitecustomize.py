"""Forbids the network to the tests and, by PYTHONPATH, to every Python process that they start."""

import sys

LOCAL = {'localhost', '127.0.0.1', '127.1', '::1', '0.0.0.0', '', None}


def forbid(event, arguments):
    """An audit hook: names and addresses of other machines raise an error."""
    if event == 'socket.getaddrinfo' and arguments[0] not in (*LOCAL, b'localhost'):
        raise ConnectionRefusedError(f'tests have no network: {arguments[0]} was looked up')
    if (
        event == 'socket.connect'
        and isinstance(arguments[1], tuple)
        and arguments[1][0] not in LOCAL
    ):
        raise ConnectionRefusedError(f'tests have no network: {arguments[1][0]} was connected to')


sys.addaudithook(forbid)
