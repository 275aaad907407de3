"""Tests and what they start have no network: an address for documentation (RFC 5737) is refused."""

import socket
import subprocess
import sys
import urllib.request

import pytest

from support import try_tool

CODE = "import urllib.request; urllib.request.urlopen('http://192.0.2.1', timeout=1)"


def test_network_is_forbidden():
    with pytest.raises(OSError, match='no network: 192.0.2.1'):
        socket.create_connection(('192.0.2.1', 80), timeout=1)
    with pytest.raises(OSError, match='no network: example.org was looked up'):
        urllib.request.urlopen('https://example.org')


def test_network_is_forbidden_to_processes_of_tests():
    command = [sys.executable, '-c', CODE]
    run = subprocess.run(command, capture_output=True, text=True)
    for status, text in ((run.returncode, run.stderr), try_tool(*command[1:])):
        assert status and 'tests have no network: 192.0.2.1' in text
