"""``tar-vis see``: who is where, for programs and language models that read text."""
