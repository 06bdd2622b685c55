"""``tar-vis doctor``: what is wrong on this machine, one line each, and what to do."""
