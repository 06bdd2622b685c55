"""The command tar-vis-demo."""
