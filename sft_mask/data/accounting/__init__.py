"""What became of rows and of the fields of their messages: learnt row by row, counted batch by batch."""
