"""Random cases for every path to labels, each judged by a slow reference that shares no code with the library.

outcome.py     what a case found, what is under test, and how two masks are compared
ids.py         markers of control tokens, or of words, that overlap in every way
finder.py      the search itself against ``reference_spans``, on markers that are torn into tokens at random
texts.py       random formats on random tokenizers, with markers that people type
containers.py  whatever a column of ids may be stored in, and what must be refused
pieces.py      packed and truncated conversations
policies.py    random policies against a loop over tokens

A case is a function of a ``random.Random`` and of what is under test; the same seed gives the same case.
"""
