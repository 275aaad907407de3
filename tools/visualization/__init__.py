"""Views of tools/visualize.py, one file each."""
