"""Labels for rows with images or audio, which a processor makes while they are collated."""
