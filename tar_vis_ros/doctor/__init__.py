"""``tar-vis doctor``: the problems of a machine, one line each, with remedies."""
