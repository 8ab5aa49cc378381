"""Why each token of a row is trained or not: ``rows`` inspects, ``segments`` says who speaks, ``reasons`` explains."""
