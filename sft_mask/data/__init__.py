"""Arrow tables and datasets in, labelled datasets out."""
