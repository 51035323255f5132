"""The console scripts: ``sd-x`` is ``commands/x.py``, which parses, calls and prints."""
