"""The conformance suite: an oracle that does not know ``sft_mask``, and the cases it judges.

alignment.py    which characters of a text each token holds, from the token's bytes
templates.py    a table a person can check: every template's headers and stops; the plain-text formats
cases.py        the conversations
oracle.py       messages + template + tokens -> a verdict for each token
prompts.py      a second oracle, from the generation prompts alone: for templates without a row in the table
tokenizers.py   real tokenizers out of the package registries
harness.py      runs the library over (tokenizer, template, conversation) and scores it by the oracle
"""
