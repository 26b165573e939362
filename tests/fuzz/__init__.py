"""A fuzzer: the commands read damaged and malicious files.

See ``python -m tests.fuzz --help``. Each kind of file is a module with

- ``prepare(folder)``, which creates what all cases need, once, and returns it,
- ``make(randomly, given, folder)``, which writes the files of a case and returns the case.

``cases.py`` checks what must hold for every command, whatever it reads.
"""
