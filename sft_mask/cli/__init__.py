"""The command line, ``sft-mask``: one module per command; ``options``, ``inputs`` and ``output`` are shared.

Only the standard library is imported until a command needs more, so ``--help`` answers at once.
"""
