"""Kernel settings for `make lab`: kernels start in the project's root, so that paths and outputs match those of the
commands, and reload modules after nbdev_export has written them."""
from pathlib import Path

c = get_config() # noqa: F821, IPython's
c.InteractiveShellApp.extensions = ['autoreload']
root = Path(__file__).resolve().parents[3]
c.InteractiveShellApp.exec_lines = ['%autoreload 2', f'import os; os.chdir({str(root)!r})']
c.HistoryManager.hist_file = ':memory:'
