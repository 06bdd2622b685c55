"""The command ``tar-vis`` and its subcommands."""
