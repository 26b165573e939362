"""Damaged and hostile files, given to the commands that read them.

``python -m tests.fuzz --help``. Each kind of file is a module with

- ``prepare(folder)``, which makes once what all cases need, and returns it,
- ``make(randomly, given, folder)``, which writes the files of a case and returns it.

``cases.py`` has what must hold for every command, whatever it reads.
"""
