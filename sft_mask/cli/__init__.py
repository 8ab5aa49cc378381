"""The command line, ``sft-mask``: one module a command.

Nothing but the standard library is imported until a command needs it, so that ``--help`` answers at once.
"""
