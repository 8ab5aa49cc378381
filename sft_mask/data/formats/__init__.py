"""The formats that chats come in: which columns, keys and roles there are, and what they are called here."""
